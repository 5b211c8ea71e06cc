"""Tasks as batches: what stacks, what is padded, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from metarl.core.errors import UsageError
from metarl.meta_rl.supervised_tasks import check_padding, masked_loss, support_and_query


def column(*values):
    return torch.tensor(values)[:, None]


def task(support, query, first=0.0):
    """Inputs count up from `first`; targets are their tenfold."""
    x, q = (first + torch.arange(float(size))[:, None] for size in (support, query))
    return x, 10 * x, q, 10 * q


def test_tasks_of_one_size_are_stacked():
    ((support, query),) = support_and_query([task(2, 3), task(2, 3, first=5.0)])
    assert support.keys() == query.keys() == {"x", "y"}
    assert torch.equal(support["x"], torch.stack([column(0.0, 1.0), column(5.0, 6.0)]))
    assert torch.equal(query["y"], torch.stack([column(0.0, 10.0, 20.0), column(50.0, 60.0, 70.0)]))


def test_a_stacked_batch_is_the_list_of_its_tasks():
    tasks = [task(2, 3), task(2, 3, first=5.0)]
    stacked = tuple(torch.stack(parts) for parts in zip(*tasks, strict=True))
    for apart in (False, True):
        one, other = support_and_query(stacked, apart=apart), support_and_query(tasks, apart=apart)
        assert len(one) == len(other) == (2 if apart else 1)
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_shorter_tasks_repeat_their_last_sample_behind_a_mask():
    ((support, query),) = support_and_query([task(1, 2, first=4.0), task(3, 2)])
    assert torch.equal(support["x"], torch.stack([column(4.0, 4.0, 4.0), column(0.0, 1.0, 2.0)]))
    assert torch.equal(support["y"], torch.stack([column(40.0, 40.0, 40.0), column(0.0, 10.0, 20.0)]))
    assert support["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert "mask" not in query


def test_tasks_apart_are_never_padded():
    batches = support_and_query([task(1, 2), task(3, 5)], apart=True)
    assert [(len(support["x"][0]), len(query["x"][0])) for support, query in batches] == [(1, 2), (3, 5)]
    assert all(batch.keys() == {"x", "y"} and len(batch["x"]) == 1 for pair in batches for batch in pair)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], r"at least one task: \(support_x, support_y, query_x, query_y\)"),
        ((), "at least one task"),
        ([task(2, 2), task(2, 2)[:3]], "task 1 is .*; got 3 parts"),
        ([torch.zeros(4, 4, 1)] * 4, r"task 0 is .*; got one tensor \(a stacked batch is a tuple\)"),
        ([task(2, 2), (column(1.0), column(1.0, 2.0), *task(2, 2)[2:])], "task 1 has 1 inputs and 2 targets"),
        ([task(2, 2), (*task(2, 2)[:2], column(1.0), column(1.0, 2.0))], "task 1 has 1 inputs and 2 targets"),
        ([task(0, 2)], "task 0 has 0 inputs and 0 targets: as many of both, and at least one"),
        ((torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(1, 3, 1)), r"\[2, 2, 2, 1\]"),
        ((torch.zeros(0, 3, 1),) * 4, r"at least one task, .* got \[0, 0, 0, 0\]"),
        ((torch.zeros(2, 3, 1), torch.zeros(2, 4, 1)) * 2, "task 0 has 3 inputs and 4 targets"),
        ((np.zeros((5, 3, 1)),) * 4, r"task 0 is \(support_x, .*\), all tensors; got one ndarray"),
        ([(np.zeros((3, 1)),) * 4], "task 0 is made of tensors, got ndarray: convert it by torch.as_tensor"),
        ([(torch.zeros(3, 1), None) * 2], "task 0 is made of tensors, got NoneType"),
    ],
)
def test_tasks_of_a_wrong_form_are_refused(tasks, message, apart):
    with pytest.raises(UsageError, match=message):
        support_and_query(tasks, apart=apart)


def test_tasks_may_differ_in_their_first_axis_only():
    wide = (torch.zeros(2, 3), torch.zeros(2, 1)) * 2
    with pytest.raises(UsageError, match=r"task 1 has \(2, 3\) and \(2, 1\) beside \(2, 1\) and \(2, 1\)"):
        support_and_query([task(2, 2), wide])
    assert len(support_and_query([task(2, 2), wide], apart=True)) == 2


@pytest.mark.parametrize("loss_fn", [mse_loss, l1_loss])
def test_a_masked_loss_is_the_loss_of_what_is_real(loss_fn):
    prediction, target = column(1.0, 5.0, 9.0), column(2.0, 2.0, -80.0)
    masked = masked_loss(loss_fn, prediction, target, torch.tensor([True, True, False]))
    torch.testing.assert_close(masked, loss_fn(prediction[:2], target[:2]))


def weighted(prediction, target):
    return cross_entropy(prediction, target, weight=torch.tensor([1.0, 9.0]))


CLASSES = [
    (torch.randn(size, 2, generator=torch.Generator().manual_seed(size)), torch.arange(size) % 2) * 2 for size in (3, 4)
]


@pytest.mark.parametrize(
    ("loss_fn", "tasks", "refused"),
    [
        (mse_loss, [task(2, 2), task(3, 2)], False),
        (lambda prediction, target: mse_loss(prediction, target, reduction="sum"), [task(2, 2), task(3, 2)], True),
        (lambda prediction, target: mse_loss(prediction, target, reduction="sum"), [task(1, 2), task(2, 2)], True),
        (lambda prediction, target: mse_loss(prediction, target).sqrt(), [task(2, 2), task(3, 2)], True),
        (lambda prediction, target: (prediction - target).abs().max(), [task(1, 2), task(3, 2)], True),
        (cross_entropy, CLASSES, False),
        (weighted, CLASSES, True),
    ],
)
def test_only_a_mean_over_samples_goes_with_padding(loss_fn, tasks, refused):
    ((support, _),) = support_and_query(tasks)
    if not refused:
        check_padding(lambda x: 2 * x, support, loss_fn)
        return
    with pytest.raises(UsageError, match="need a loss that is a mean over samples, got"):
        check_padding(lambda x: 2 * x, support, loss_fn)


@pytest.mark.parametrize(
    ("predict", "refused"),
    [
        (lambda x: x.cumsum(0), False),  # sees the past
        (lambda x: x.flip(0).cumsum(0).flip(0), True),  # sees what comes
        (lambda x: x - x.mean(0), True),
    ],
)
def test_only_a_model_that_sees_no_padding_goes_with_it(predict, refused):
    ((support, _),) = support_and_query([task(2, 2), task(3, 2)])
    if not refused:
        check_padding(predict, support, mse_loss)
        return
    with pytest.raises(UsageError, match="the model mixes samples"):
        check_padding(predict, support, mse_loss)


def test_to_try_padding_on_a_cpu_touches_none_of_several_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # torch would initialise both, and warn
    ((support, _),) = support_and_query([task(2, 2), task(3, 2)])
    check_padding(lambda x: 2 * x, support, mse_loss)
