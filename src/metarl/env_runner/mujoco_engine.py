"""How MuJoCo itself is set up for many rows: what it logs, and the work of a step that changes no number."""

from __future__ import annotations

import ctypes
from itertools import count
from pathlib import Path

import mujoco  # type: ignore[import-untyped]
import numpy as np


def configure_log(**settings: bool) -> None:
    """Change MuJoCo's process-wide log settings; installing an own handler would disable mjbatch's error trap."""
    config = mujoco.MjLogConfig.get()
    for name, value in settings.items():
        setattr(config, name, value)
    mujoco.MjLogConfig.set(config)


def stop_timers() -> None:
    """Have MuJoCo no longer time the stages of its steps, in this whole process: `MjData.timer` stays as it is.

    Every step asks the clock some thirty times, which is a sixth of a half-cheetah's step. The Python bindings install
    the clock when they are imported, and none of their calls takes it away; in MuJoCo's C interface that is a null
    pointer in `mjcb_time`. `mujoco.set_mjcb_time(None)` brings the clock back.
    """
    for library in Path(mujoco.__file__).parent.glob("*mujoco.*"):
        ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time").value = None


def stepped_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """The compiled description to step many rows of: the same trajectory, bit for bit, at less cost.

    Where the bodies can touch nothing but one floor, all pairs of geoms that can meet are listed beforehand, and no
    step looks for them: that search is a seventh of a half-cheetah's step. A listed pair has contact parameters of its
    own, so this is for geoms that keep what these follow from, as friction. The description is changed.
    """
    model = spec.compile()
    pairs = _pairs_with_the_floor(model)
    if pairs is None:
        return model
    _list_pairs(spec, pairs)
    stepped = spec.compile()
    _set_contact_parameters(stepped, model)
    return stepped


def bare_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """The compiled description without what is only there to be looked at: the same trajectory, bit for bit.

    Every step brings all geoms and sites up to date, and a batch has a copy of the model for each of its threads. What
    can touch nothing is left out of both; bodies keep the mass that they have from it. This is for descriptions whose
    sensors, tendons, actuators and constraints are of no site. The description is changed.
    """
    for geom in spec.geoms:
        geom.material = ""  # before compiling: a compiled geom keeps the number of its material
    for paint in (*spec.materials, *spec.textures):
        spec.delete(paint)
    whole = spec.compile()
    for body in spec.bodies[1:]:
        body.explicitinertial, body.fullinertia = True, np.full(6, np.nan)
        body.mass, body.inertia = whole.body_mass[body.id], whole.body_inertia[body.id]
        body.ipos, body.iquat = whole.body_ipos[body.id], whole.body_iquat[body.id]
    spec.compiler.inertiafromgeom = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_FALSE
    shapes = {geom.meshname for geom in spec.geoms if geom.contype or geom.conaffinity}
    for element in (
        *(geom for geom in spec.geoms if not (geom.contype or geom.conaffinity)),
        *(*spec.sites, *spec.cameras, *spec.lights),
        *(mesh for mesh in spec.meshes if mesh.name not in shapes),
    ):
        spec.delete(element)
    return spec.compile()


def _pairs_with_the_floor(model: mujoco.MjModel) -> list[tuple[int, int]] | None:
    """All pairs of geoms that can touch, the floor's first; None where others can, or what a pair is like is not plain.

    Bodies touch by MuJoCo's rule: one's contype meets the other's conaffinity, and they are not welded together.
    """
    fixed = model.body_weldid[model.geom_bodyid] == 0
    meets = (model.geom_contype[:, None] & model.geom_conaffinity) != 0
    touches = (meets | meets.T) & ~(fixed[:, None] & fixed)
    floors = np.flatnonzero(fixed & touches.any(axis=1))
    plain = (
        model.npair == model.nexclude == model.nflex == 0
        and len(floors) == 1
        and not touches[~fixed][:, ~fixed].any()
        and not model.geom_gap.any()
        and (model.geom_priority == model.geom_priority[0]).all()
        and (model.geom_solref > 0).all()
        and (model.geom_solmix > 0).all()
    )
    return [(int(floors[0]), int(geom)) for geom in np.flatnonzero(touches[floors[0]])] if plain else None


def _list_pairs(spec: mujoco.MjSpec, pairs: list[tuple[int, int]]) -> None:
    geoms = sorted(spec.geoms, key=lambda geom: geom.id)
    taken = {geom.name for geom in geoms}
    for geom in geoms:
        if not geom.name:
            geom.name = next(name for number in count(geom.id) if (name := f"geom {number}") not in taken)
            taken.add(geom.name)
        geom.contype = geom.conaffinity = 0
    for first, second in pairs:
        spec.add_pair(geomname1=geoms[first].name, geomname2=geoms[second].name)


def _set_contact_parameters(model: mujoco.MjModel, geoms: mujoco.MjModel) -> None:
    """Give every listed pair what a contact of its two geoms has, where `_pairs_with_the_floor` finds them plain.

    Condition and friction are the greater, the margin is the sum, and solref and solimp are means weighted by solmix
    (MuJoCo's documentation, Computation, Contact parameters).
    """
    pair = np.stack([model.pair_geom1, model.pair_geom2])
    weight = geoms.geom_solmix[pair[0]] / geoms.geom_solmix[pair].sum(axis=0)
    model.pair_dim[:] = geoms.geom_condim[pair].max(axis=0)
    model.pair_friction[:] = geoms.geom_friction[pair].max(axis=0)[:, [0, 0, 1, 2, 2]]
    model.pair_margin[:] = geoms.geom_margin[pair].sum(axis=0)
    for mean, own in ((model.pair_solref, geoms.geom_solref), (model.pair_solimp, geoms.geom_solimp)):
        mean[:] = weight[:, None] * own[pair[0]] + (1 - weight[:, None]) * own[pair[1]]
    # These geoms have neither; a listed pair would take both from the description's defaults for pairs.
    model.pair_gap[:] = model.pair_solreffriction[:] = 0.0
