"""The training of networks against optima, optimisers and batches worked out otherwise."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from training_rows import (  # noqa: E402
    Linear,
    Rows,
    TwoLayers,
    logistic_loss,
    logistic_rows,
    softmax_loss,
    weights_of,
)

from gdmix.config.training import Training  # noqa: E402
from gdmix.deep import checkpoints  # noqa: E402
from gdmix.deep.batches import BatchPlan, Copies, Shuffle, Units, split, units_of  # noqa: E402
from gdmix.deep.optimizer import parameter_groups, schedule_factor  # noqa: E402
from gdmix.deep.trainer import Progress, TrainingReport, fit_network  # noqa: E402
from gdmix.errors import ConfigError, DataError, ModelError  # noqa: E402
from gdmix.glm.large import fit_large  # noqa: E402
from gdmix.glm.losses import LOGISTIC  # noqa: E402
from gdmix.glm.matrix import CsrMatrix  # noqa: E402
from gdmix.glm.penalty import QuadraticPenalty  # noqa: E402


def trained(
    rows: Rows, training: Training, network: Any = None, **more: Any
) -> tuple[NDArray[np.float64], TrainingReport]:
    network = network or TwoLayers()
    report = fit_network(network, rows, more.pop("loss", logistic_loss), training, **more)
    return weights_of(network), report


# Where it ends.


def test_a_linear_network_reaches_the_optimum_of_the_fixed_effect() -> None:
    rows = logistic_rows(600, 5)
    n, d = rows.x.shape
    design = CsrMatrix(
        np.arange(0, n * d + 1, d), np.tile(np.arange(d, dtype=np.uint32), n), rows.x.ravel(), d
    )
    exact = fit_large(
        design,
        rows.response,
        rows.weight,
        rows.offset,
        loss=LOGISTIC,
        penalty=QuadraticPenalty(np.zeros(d + 1)),
    )
    network = Linear(d)
    training = Training(
        epochs=100, batch_size=100, learning_rate=0.03, schedule="cosine", weight_decay=0.0
    )
    report = fit_network(network, rows, logistic_loss, training)
    found = np.append(network.intercept.item(), network.slopes.detach().numpy())
    assert found == pytest.approx(exact.coefficients, abs=2e-3)
    z = rows.offset + found[0] + rows.x @ found[1:]
    value = (rows.weight * (np.logaddexp(0.0, z) - rows.response * z)).sum()
    assert value == pytest.approx(exact.value, rel=1e-5)
    assert report.steps == 600


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_as_published(corrected: bool) -> None:
    # Loshchilov & Hutter 2019, algorithm 2; without bias correction as in BERT's code.
    rows, d = logistic_rows(40, 3), 3
    training = Training(
        steps=25,
        batch_size=40,
        learning_rate=0.05,
        weight_decay=0.3,
        warmup=5,
        clip=0.2,
        epsilon=1e-3,
        bias_correction=corrected,
    )

    class Matrix(Linear):  # a matrix, so that its weights decay
        def __init__(self) -> None:
            super().__init__(d)
            self.slopes = torch.nn.Parameter(torch.tensor([[0.5], [-0.5], [1.0]]))

        def forward(self, batch: Any) -> Any:
            return (batch["x"].to(self.slopes.dtype) @ self.slopes).squeeze(1) + self.intercept

    network = Matrix().double()
    fit_network(network, rows, logistic_loss, training)

    theta = np.array([0.5, -0.5, 1.0, 0.0])
    decay = np.array([0.3, 0.3, 0.3, 0.0])
    x = np.column_stack([rows.x.astype(np.float32), np.ones(40)])
    m, v = np.zeros(4), np.zeros(4)
    for t in range(1, 26):
        z = x @ theta + rows.offset
        g = x.T @ (rows.weight * (1 / (1 + np.exp(-z)) - rows.response)) / rows.weight.sum()
        g *= min(1.0, 0.2 / np.linalg.norm(g))
        lr = 0.05 * (t / 5 if t <= 5 else (26 - t) / 20)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = (1 - 0.9**t, 1 - 0.999**t) if corrected else (1.0, 1.0)
        theta -= lr * decay * theta + lr * (m / first) / (np.sqrt(v / second) + 1e-3)
    assert weights_of(network) == pytest.approx(np.append(theta[:3], theta[3]), abs=1e-6)


def test_schedules() -> None:
    for schedule, last in (("constant", 1.0), ("linear", 1 / 6), ("cosine", 0.0669873)):
        factors = [schedule_factor(s, 10, 4, schedule) for s in range(10)]  # type: ignore[arg-type]
        assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert factors[-1] == pytest.approx(last)
        assert factors == sorted(factors[:4]) + sorted(factors[4:], reverse=True)
    assert schedule_factor(0, 1, 0, "cosine") == 1.0
    assert [schedule_factor(s, 2, 2, "linear") for s in range(2)] == [0.5, 1.0]


def test_parameters_by_rate_and_decay() -> None:
    class Encoded(TwoLayers):
        def pretrained_parameters(self) -> Any:
            return self.layers[0].parameters()

    network = Encoded()
    network.layers[3].bias.requires_grad_(False)
    groups = parameter_groups(network, Training(weight_decay=0.1, encoder_learning_rate=1e-5))
    assert [(g["highest_lr"], g["decay"], len(g["params"])) for g in groups] == [
        (1e-5, 0.1, 1),
        (1e-5, 0.0, 1),
        (1e-3, 0.1, 1),
    ]
    before = weights_of(network)
    frozen = Training(steps=3, encoder_learning_rate=1e-12, weight_decay=0.0)
    fit_network(network, logistic_rows(), logistic_loss, frozen)
    after = weights_of(network)
    assert after[:48] == pytest.approx(before[:48], abs=1e-9)  # of the encoder
    assert (after[48:56] != before[48:56]).all()
    assert after[56] == before[56]


def test_half_precision_scales_the_loss_and_skips_overflow(monkeypatch: Any) -> None:
    scaler = torch.amp.GradScaler
    training = Training(steps=20, log_every=1, clip=0.05, learning_rate=0.01)
    plain, wanted = trained(logistic_rows(), training)
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler("cpu", init_scale=2.0**10)
    )
    scaled, report = trained(logistic_rows(), training)
    assert scaled == pytest.approx(plain, abs=1e-6)
    assert report.curve == wanted.curve[:1] + [
        (step, pytest.approx(value, rel=1e-5)) for step, value in wanted.curve[1:]
    ]
    assert report.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-4)
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler("cpu", init_scale=1e38)
    )
    begun, rows = weights_of(TwoLayers()), logistic_rows()
    rows.x *= 1e3
    skipped, _ = trained(rows, Training(steps=1))
    assert (skipped == begun).all()
    later, _ = trained(rows, Training(steps=20))
    assert np.isfinite(later).all() and (later != begun).any()


# Batches.


@pytest.mark.parametrize("group", [None, np.repeat(np.arange(100), 4)], ids=["rows", "groups"])
@pytest.mark.parametrize("parts", [2, 5])
def test_accumulated_batches_are_one_larger_batch(parts: int, group: Any) -> None:
    rows, loss = logistic_rows(group=group), logistic_loss if group is None else softmax_loss
    # AdamW makes steps of rounding errors where the gradient is 0, as the bias's with softmax.
    common: dict[str, Any] = {"epochs": 3, "log_every": 1, "clip": 0.1, "epsilon": 1e-3}
    whole, one = trained(rows, Training(batch_size=40 * parts, **common), loss=loss)
    added, other = trained(rows, Training(batch_size=40, accumulate=parts, **common), loss=loss)
    assert one.steps == other.steps == 3 * -(-400 // (40 * parts))
    assert added == pytest.approx(whole, abs=1e-5)
    assert np.array(one.curve) == pytest.approx(np.array(other.curve), rel=1e-5)


@pytest.mark.parametrize("block", [None, 7, 1000])
def test_an_epoch_has_every_number_once(block: int | None) -> None:
    shuffle = Shuffle(50, block, seed=3)
    epochs = [
        np.concatenate([shuffle.part(e, a, a + 10) for a in range(0, 50, 10)]) for e in (0, 1)
    ]
    assert all(sorted(e) == list(range(50)) for e in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert (Shuffle(50, block, seed=4).part(0, 0, 50) != epochs[0]).any()
    # Any part is found without those before it.
    assert (Shuffle(50, block, seed=3).part(1, 13, 31) == epochs[1][13:31]).all()
    if block == 7:
        blocks = epochs[0] // 7
        assert np.count_nonzero(np.diff(blocks)) == 7  # each of the 8 blocks in one piece


def test_units_are_rows_or_groups_of_weight() -> None:
    rows = logistic_rows(8, weight=np.array([1, 0, 1, 1, 0, 0, 2, 1.0]))
    assert units_of(rows).rows.tolist() == [0, 2, 3, 6, 7]
    rows.group = np.array([5, 3, 5, 3, 9, 9, 0, 0])
    groups = units_of(rows)  # the one of 9 weighs nothing; in the order of their first rows
    assert [groups.rows_of(np.array([k])).tolist() for k in range(groups.size)] == [
        [0, 2],
        [1, 3],
        [6, 7],
    ]
    assert groups.rows_of(np.array([2, 0])).tolist() == [6, 7, 0, 2]
    rows.weight[:] = 0.0
    with pytest.raises(DataError, match="no row has a weight above 0"):
        units_of(rows)


def test_shares_of_processes_make_up_the_step() -> None:
    rows = logistic_rows(103)
    plan = BatchPlan(units_of(rows), rows.weight, batch_size=10, accumulate=2, seed=1)
    assert plan.steps_per_epoch == 6
    sizes = []
    for step in range(12):
        alone = plan.share(step, Copies())
        shares = [plan.share(step, Copies(rank, 3)) for rank in range(3)]
        for k, part in enumerate(alone.parts):
            assert np.concatenate([s.parts[k] for s in shares]).tolist() == part.tolist()
        own = np.concatenate(alone.parts)
        assert {s.weight for s in (alone, *shares)} == {rows.weight[own].sum()}
        sizes.append(own.size)
    assert set(sizes) == {17, 18} and sum(sizes) == 206


def test_split_of_units() -> None:
    group = np.repeat(np.arange(30), np.arange(1, 31))
    rows = logistic_rows(group.size, group=group)
    training, judging = split(units_of(rows), 0.2, seed=5)
    assert (training.size, judging.size) == (24, 6)
    both = [set(group[part.rows]) for part in (training, judging)]
    assert not both[0] & both[1]
    assert sorted([*training.rows, *judging.rows]) == list(range(group.size))
    again, _ = split(units_of(rows), 0.2, seed=5)
    assert (again.rows == training.rows).all()
    with pytest.raises(DataError, match="only one row, or group"):
        split(Units(np.array([4])), 0.5, seed=0)


def test_what_trains_and_what_judges() -> None:
    rows = logistic_rows(200, block_rows=30)
    rows.weight[:50] = 0.0
    trained(rows, Training(epochs=2, batch_size=20, inner_split=0.2))
    sizes = [r.size for r in rows.asked]
    assert sizes == 2 * (6 * [20] + 2 * [15])
    training = {r for k in (0, 1) for part in rows.asked[8 * k : 8 * k + 6] for r in part}
    judging = {r for k in (0, 1) for part in rows.asked[8 * k + 6 : 8 * k + 8] for r in part}
    assert (len(training), len(judging)) == (120, 30)
    assert not training & judging
    assert min(training | judging) == 50


def test_groups_stay_whole() -> None:
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 4))
    rows = logistic_rows(group=group, block_rows=50)
    _, report = trained(rows, Training(epochs=2, batch_size=30, inner_split=0.1), loss=softmax_loss)
    assert report.steps == 2 * 12  # 90 groups, 8 to a batch


# Which network is kept.


def overfitted(**more: Any) -> tuple[Any, Rows, TrainingReport]:
    rng = np.random.default_rng(1)
    rows = Rows(rng.normal(size=(60, 5)), rng.integers(0, 2, 60).astype(float))
    network = TwoLayers(width=64)
    training = Training(
        epochs=60, batch_size=12, learning_rate=0.02, inner_split=0.4, schedule="constant", **more
    )
    return network, rows, fit_network(network, rows, logistic_loss, training)


def test_the_best_network_by_the_inner_split_is_kept() -> None:
    network, rows, report = overfitted()
    steps, values = zip(*report.judgements, strict=True)
    assert list(steps) == list(range(3, 181, 3))
    assert report.kept == steps[int(np.argmin(values))] < report.steps == 180
    assert values[-1] > min(values) + 0.1  # it was worth it
    _, inner = split(units_of(rows), 0.4, seed=0)
    with torch.no_grad():
        batch = rows.batch(inner.rows)
        ones = torch.ones(inner.rows.size)
        value = logistic_loss(network(batch), batch["response"], ones) / inner.rows.size
    assert float(value) == pytest.approx(min(values), rel=1e-6)
    assert not network.training


def test_patience() -> None:
    _, _, whole = overfitted()
    network, _, report = overfitted(patience=4)
    assert report.stopped_early
    assert report.judgements == whole.judgements[: len(report.judgements)]
    assert [step for step, _ in report.judgements[-4:]] == [
        report.kept + 3 * k for k in (1, 2, 3, 4)
    ]
    assert report.steps == report.kept + 12
    assert report.curve[-1][0] == report.steps


def test_judged_by_validation_rows_only_where_asked() -> None:
    values = iter([0.5, float("nan"), 0.9, 0.7])
    seen: list[bool] = []

    def validation(network: Any) -> float:
        seen.append(network.training or torch.is_grad_enabled())
        return next(values)

    asked = Training(steps=7, judge_on_validation=True, judge_every=2)
    network = TwoLayers()
    report = fit_network(
        network, logistic_rows(), logistic_loss, asked, validation=validation, higher_is_better=True
    )
    assert [step for step, _ in report.judgements] == [2, 4, 6, 7]
    assert (report.kept, seen) == (6, 4 * [False])
    shorter, _ = trained(logistic_rows(), Training(steps=7, judge_every=None))
    assert (weights_of(network) != shorter).any()

    _, plain = trained(logistic_rows(), Training(steps=4), validation=validation)
    assert (plain.judgements, plain.kept) == ([], 4)
    with pytest.raises(ConfigError, match="judge_on_validation: there are no validation rows"):
        trained(logistic_rows(), asked)


def test_a_first_judgement_that_is_nan_is_replaced_by_any_number() -> None:
    values = iter([float("nan"), 0.2, float("nan")])
    asked = Training(steps=3, judge_on_validation=True, judge_every=1)
    _, report = trained(logistic_rows(), asked, validation=lambda _: next(values))
    assert report.kept == 2


# The same again.


def test_the_seed_is_all_that_chance_depends_on() -> None:
    training = Training(epochs=2, batch_size=32)
    state = torch.get_rng_state()
    first, _ = trained(logistic_rows(), training, TwoLayers(dropout=0.5), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    again, _ = trained(logistic_rows(), training, TwoLayers(dropout=0.5), seed=1)
    other, _ = trained(logistic_rows(), training, TwoLayers(dropout=0.5), seed=2)
    assert (first == again).all()
    assert (first != other).any()


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 13, 25, 39])
def test_a_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any, stop: int) -> None:
    monkeypatch.setattr(checkpoints, "_SHARE", 1e9)  # after every step
    training = Training(
        epochs=5, batch_size=16, accumulate=2, inner_split=0.4, log_every=1, learning_rate=0.05
    )

    def stopping(progress: Progress) -> None:
        if progress.step == stop:
            raise Stop

    whole, wanted = trained(logistic_rows(), training, TwoLayers(dropout=0.3))
    assert wanted.steps == 40
    path = tmp_path / "new" / "global.pt"
    with pytest.raises(Stop):
        trained(
            logistic_rows(),
            training,
            TwoLayers(dropout=0.3),
            checkpoint=path,
            on_progress=stopping,
        )
    begun: list[int] = []
    for _ in range(2):  # the second time there is nothing left to do
        weights, report = trained(
            logistic_rows(),
            training,
            TwoLayers(dropout=0.3),
            checkpoint=path,
            on_progress=lambda p: begun.append(p.step),
        )
        assert (weights == whole).all()
        assert (report.curve, report.judgements) == (wanted.curve, wanted.judgements)
        assert (report.kept, report.gradient_norm) == (wanted.kept, wanted.gradient_norm)
    assert begun == list(range(max(stop, 1), 41))


def test_a_checkpoint_of_another_training(tmp_path: Path) -> None:
    path = tmp_path / "global.pt"
    training = Training(steps=5)

    def again(rows: Rows, training: Training, network: Any = None, **more: Any) -> list[int]:
        steps: list[int] = []
        more = {"identity": {"spec": {"hidden": [8]}}, **more}
        trained(
            rows,
            training,
            network,
            checkpoint=path,
            on_progress=lambda p: steps.append(p.step),
            **more,
        )
        return steps

    assert again(logistic_rows(), training) == [5]
    assert again(logistic_rows(), training) == []  # it had ended
    rounded = logistic_rows()
    rounded.offset *= 1 + 1e-13
    assert again(rounded, training) == []
    # What it begins from is another: another pass.
    moved = logistic_rows()
    moved.offset[3] += 1e-3
    assert again(moved, training) == [5]
    assert again(moved, training, TwoLayers(seed=1)) == [5]
    assert again(moved, Training(steps=6)) == [6]  # of the first network, so that it is anew, too
    for change, message in (
        ({"training": Training(steps=6, batch_size=9)}, "another batch_size: 256, not 9;"),
        ({"seed": 4}, "another seed: 0, not 4;"),
        ({"network": TwoLayers(width=9)}, r"another layers.0.weight: \[8, 5\], not \[9, 5\];"),
        ({"identity": {"spec": {"hidden": [9]}}}, r"another hidden: \[8\], not \[9\];"),
        ({"rows": logistic_rows(300)}, "another rows: 400, not 300;"),
    ):
        given: dict[str, Any] = {"rows": moved, "training": Training(steps=6), **change}
        with pytest.raises(ModelError, match=message):
            again(given.pop("rows"), given.pop("training"), given.pop("network", None), **given)
    # Where it runs and what it logs has no effect on the model.
    assert again(moved, Training(steps=6, device="cpu", log_every=2)) == []


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "global.pt"
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="global.pt: can't be read"):
        trained(logistic_rows(), Training(steps=1), checkpoint=path)


@pytest.fixture
def plain_interrupts() -> Iterator[None]:
    """Undo what others, such as PySpark, have made of Ctrl-C in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("plain_interrupts")
def test_an_interrupt_waits_for_the_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=50)
    whole, wanted = trained(logistic_rows(), training)
    path = tmp_path / "global.pt"
    handler = signal.getsignal(signal.SIGINT)

    class Interrupted(Rows):
        def batch(self, rows: Any) -> Any:
            if len(self.asked) == 12:
                signal.raise_signal(signal.SIGINT)
            return super().batch(rows)

    rows = logistic_rows()
    rows.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        trained(rows, training, checkpoint=path)
    assert len(rows.asked) == 13
    assert signal.getsignal(signal.SIGINT) is handler
    rest = logistic_rows()
    weights, report = trained(rest, training, checkpoint=path)
    assert len(rest.asked) == 32 - 13
    assert (weights == whole).all()
    assert report.curve == wanted.curve


# What goes wrong, and what is told.


def test_divergence_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not finite any more by step 50; lower learning_rate"):
        trained(logistic_rows(), Training(steps=100, learning_rate=1e30, clip=None))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 1, "epochs": 1}, "steps and epochs: choose one"),
        ({"patience": 1}, "patience: needs rows to judge by"),
        ({"judge_every": 1}, "judge_every: needs rows to judge by"),
        ({"inner_split": 0.1, "judge_on_validation": True}, "choose one"),
        ({"inner_split": 1.0}, "less than 1"),
        ({"warmup": 1.5}, "number of steps, or a share"),
        ({"device": "gpu"}, "device"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"batchsize": 1}, "batchsize"),
    ],
)
def test_settings_that_make_no_sense(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**keys)


def test_the_length_of_training() -> None:
    assert (Training().epochs, Training().steps) == (3, None)
    assert (Training(steps=5).epochs, Training(epochs=7).steps) == (None, None)
    for training in (Training(), Training(steps=5)):
        assert Training.model_validate(training.model_dump()) == training
        assert Training.model_validate_json(training.model_dump_json()) == training


def test_scores_of_another_shape() -> None:
    class Column(TwoLayers):
        def forward(self, batch: Any) -> Any:
            return self.layers(batch["x"])

    with pytest.raises(ConfigError, match=r"scores of shape \(50, 1\) for 50 rows"):
        trained(logistic_rows(), Training(batch_size=50), Column())


def test_a_network_without_parameters() -> None:
    class Constant(torch.nn.Module):
        def forward(self, batch: Any) -> Any:
            return batch["offset"]

    with pytest.raises(ConfigError, match="no parameters that can be trained"):
        fit_network(Constant(), logistic_rows(), logistic_loss, Training())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(caplog: Any) -> None:
    with pytest.raises(ConfigError, match="training.device: there is no 'cuda:1' here; GPUs: 0"):
        trained(logistic_rows(), Training(device="cuda:1"))
    caplog.set_level(logging.INFO, "gdmix.training")
    plain, _ = trained(logistic_rows(), Training(steps=9))
    other, _ = trained(logistic_rows(), Training(steps=9, precision="bfloat16", compile=True))
    assert (plain == other).all()
    assert "precision and compile are for a GPU" in caplog.text


def test_progress(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "gdmix.training")
    told: list[Progress] = []
    _, report = trained(
        logistic_rows(),
        Training(steps=25, batch_size=100, log_every=10, inner_split=0.5),
        on_progress=told.append,
    )
    assert [(p.step, p.steps, p.loss) for p in told] == [(s, 25, x) for s, x in report.curve]
    assert [p.step for p in told] == [10, 20, 25]
    assert told[-1].judgement == report.judgements[-1][1]
    assert told[-1].seconds_left == 0.0
    assert all(p.rate > 0 for p in told)
    assert caplog.messages[-1] == str(told[-1])
    text = str(Progress(1000, 20000, 0.5, 12345.6, 125.0, None))
    assert text == "step 1,000/20,000, loss 0.500000, 12,346 rows/s, 2:05 left"
