# An image that trains and measures:  docker build -t metarl .  and  docker run -v runs:/work/runs metarl
#
# VARIANT=cuda takes the torch that pip's index offers, on x86-64 Linux a CUDA build, which runs on a CPU as well.
# VARIANT=cpu takes PyTorch's CPU build, far smaller, from PyTorch's own index: name that as PIP_EXTRA_INDEX_URL, or give
# pip's configuration as a secret, which leaves no trace in the image:
#   docker build --build-arg VARIANT=cpu --build-arg PIP_EXTRA_INDEX_URL=... -t metarl .
#   docker build --build-arg VARIANT=cpu --secret id=pip,src=$HOME/.config/pip/pip.conf -t metarl .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cuda
ARG PIP_EXTRA_INDEX_URL=
SHELL ["/bin/sh", "-eux", "-c"]
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source

# torch is a layer of its own: it is by far the largest, and changes the least.
COPY constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    version=$(sed -n 's/^torch==//p' constraints.txt); \
    case "$VARIANT" in \
      cpu) torch="torch==$version+cpu" ;; \
      cuda) torch="torch==$version" ;; \
      *) echo "VARIANT is cpu or cuda, got $VARIANT" >&2; exit 2 ;; \
    esac; \
    pip install -c constraints.txt "$torch"

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt ".[video,report]"

FROM ${BASE}
# g++ makes the machine code of long runs on a CPU, and what Triton starts its kernels with on a GPU.
# Debian keeps only the newest patch of a package: a pinned version could not be installed for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 metarl \
    && install -d -o metarl -g metarl /work/runs
COPY --from=build /opt/venv /opt/venv
# Caches go where any user may write: `docker run --user` with another id works too.
ENV PATH=/opt/venv/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba TRITON_CACHE_DIR=/tmp/triton MPLCONFIGDIR=/tmp/matplotlib
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["metarl"]
CMD ["run", "--task-dist", "halfcheetah-vel", "--algo", "rl2", "--method", "ssm", "--benchmark-mode", "--few-shot", "1", "5", "10", "--epochs", "50"]
