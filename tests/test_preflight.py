"""Predicted memory against what real steps take, and how a step is made to fit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from fixres_poc import backbones, preflight
from fixres_poc.config import REPOSITORY, InputError, PairSettings, TrainSettings

NETWORKS = ("efficientnet_lite0", "timm:resnext50_32x4d")


def settings(backbone: str = NETWORKS[0], size: int = 64, batch: int = 8, **others: object) -> TrainSettings:
    return TrainSettings.model_validate({"backbone": backbone, "train_size": size, "batch_size": batch, **others})


def network(backbone: str, recompute: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = backbones.create(backbone, 10, pretrained=False).train().to(memory_format=torch.channels_last)
    if recompute:
        backbones.recompute(model)
    return model


def step(model: torch.nn.Module, sgd: torch.optim.Optimizer, images: torch.Tensor, pieces: int = 1) -> None:
    for part in images.chunk(pieces):
        targets = torch.zeros(len(part), dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(model(part), targets, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
    sgd.step()
    sgd.zero_grad()


def optimizer(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True, foreach=False)


def measured_bytes(backbone: str, size: int, batch: int, recompute: bool, pieces: int = 1) -> int:
    """Peak of what is held before a real step and of the allocations that the profiler sees in it."""
    model = network(backbone, recompute)
    sgd, images = optimizer(model), torch.rand(batch, 3, size, size)
    step(model, sgd, images, pieces)
    held = [*model.parameters(), *model.buffers(), *(each["momentum_buffer"] for each in sgd.state.values())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(model, sgd, images, pieces)
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = torch.tensor([each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())])
    held_bytes = images.nbytes // pieces + sum(each.numel() * each.element_size() for each in held)
    return int(held_bytes + changes.cumsum(0).max())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("backbone", "size"), [(NETWORKS[0], 160), (NETWORKS[1], 96)])
def test_prediction_is_within_15_percent_of_a_real_step(backbone: str, size: int, recompute: bool) -> None:
    predicted = preflight.training_bytes(settings(backbone, size), 10, 8, recompute)
    assert predicted == pytest.approx(measured_bytes(backbone, size, 8, recompute), rel=0.15)


def test_accumulating_gradients_is_predicted_as_well() -> None:
    predicted = preflight.training_bytes(settings(NETWORKS[1], 96), 10, 4, False)
    assert predicted == pytest.approx(measured_bytes(NETWORKS[1], 96, 8, False, pieces=2), rel=0.15)
    assert predicted != preflight.training_bytes(settings(NETWORKS[1], 96, batch=4), 10, 4, False)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [96, 160, 224])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_prediction_is_within_15_percent_at_every_size(backbone: str, size: int, recompute: bool) -> None:
    predicted = preflight.training_bytes(settings(backbone, size, 16), 10, 16, recompute)
    assert predicted == pytest.approx(measured_bytes(backbone, size, 16, recompute), rel=0.15)


def test_recorder_agrees_with_the_tracker_of_torch() -> None:
    with torch.device("meta"):
        model = backbones.create(NETWORKS[0], 10, pretrained=False).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        sgd, images = optimizer(model), torch.empty(4, 3, 64, 64)
        for each in model.parameters():
            sgd.state[each]["momentum_buffer"] = torch.zeros_like(each)
        tracker = MemTracker()
        tracker.track_external(model, sgd, images)
        with tracker:
            step(model, sgd, images)
    expected = sum(each["Total"] for each in tracker.get_tracker_snapshot("peak").values())
    assert preflight.training_bytes(settings(batch=4), 10, 4, False) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_any_batch_size_follows_from_the_two_that_are_traced(batch: int) -> None:
    exact = preflight._training(NETWORKS[0], 10, 64, True, True, batch)
    predicted = preflight.training_bytes(settings(batch=32, precision="bf16"), 10, batch, True)
    assert predicted == exact.peak(accumulating=True)


@pytest.mark.parametrize("backbone", ["timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_networks_without_batch_norm_are_predicted(backbone: str) -> None:
    plain, recomputed = (preflight.training_bytes(settings(backbone, 224), 10, 8, each) for each in (False, True))
    assert preflight.parameters_and_flops(backbone, 10, 224)[0] * 12 < recomputed < plain


def test_flops_are_those_published() -> None:
    parameters, flops = preflight.parameters_and_flops("timm:resnet50", 1000, 224)
    assert parameters == 25_557_032  # torchvision's table of models, as are the 4.09 G multiply-adds
    assert flops / 2 == pytest.approx(4.09e9, rel=0.005)


def test_stage_2_needs_less_than_stage_1_and_more_with_more_tails() -> None:
    def pair(*adaptations: str) -> int:
        values = settings(size=96).model_dump() | {"test_size": 96, "adaptations": adaptations}
        return preflight.adapting_bytes(PairSettings.model_validate(values), 10)

    assert pair("head") < pair("head", "head_bn") < preflight.training_bytes(settings(size=96), 10, 8, False)


def test_fit_goes_down_the_ladder() -> None:
    def way(budget: int, wish: object = "auto") -> tuple[int, bool, bool]:
        found = preflight.fit(settings(gradient_checkpointing=wish), 10, budget)
        assert found.fits == (found.peak_bytes <= budget)
        return found.micro_batch_size, found.gradient_checkpointing, found.fits

    def need(micro: int, recompute: bool) -> int:
        return preflight.training_bytes(settings(), 10, micro, recompute)

    assert way(need(8, False)) == (8, False, True)
    assert way(need(8, False) - 1) == way(need(8, True)) == (8, True, True)
    assert way(need(8, True) - 1) == (4, True, True)
    assert way(0) == (1, True, False)
    assert way(need(8, False), True) == (8, True, True)
    assert way(need(8, False) - 1, False) == (4, False, True)


def test_a_network_that_cannot_recompute_gets_smaller_batches() -> None:
    found = preflight.fit(settings("timm:vgg11", 32, 4), 10, 0)
    assert (found.micro_batch_size, found.gradient_checkpointing) == (1, False)
    with pytest.raises(InputError, match=r"^gradient_checkpointing = True: .* allowed"):
        preflight.fit(settings("timm:vgg11", 32, 4, gradient_checkpointing=True), 10, 0)


def test_predicting_leaves_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    preflight._training.cache_clear()
    preflight.fit(settings(), 10, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_micro_batches_end_at_one_picture() -> None:
    assert preflight.micro_batches(32) == [32, 16, 8, 4, 2, 1]
    assert preflight.micro_batches(6) == [6, 3, 2, 1]


def test_the_lowest_limit_of_the_control_groups_around_counts(tmp_path: Path) -> None:
    own, inner = tmp_path / "cgroup", tmp_path / "groups" / "a" / "b"
    own.write_text("0::/a/b\n")
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("4096\n")
    assert preflight._limits(own, tmp_path / "groups") == [4096]
    assert preflight._limits(tmp_path / "none", tmp_path / "groups") == []


def test_budget_is_half_of_the_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight, "_limits", lambda: [4096, 2048])
    assert preflight.budget_bytes() == 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="getrusage would count the parent's memory as well")
def test_the_largest_network_is_planned_in_a_minute_and_2_gib(tmp_path: Path) -> None:
    (tmp_path / "wsl.yml").write_text(
        "dataset: stanford_dogs\nbackbone: resnext101_32x48d_wsl\nbatch_size: 16\n"
        "train_sizes: [128, 224, 320]\ntest_sizes: [128, 224, 320, 380]\n"
    )
    code = f"""if True:
        import time
        from pathlib import Path
        from fixres_poc import plan
        from fixres_poc.reading import load_sweep
        begun = time.process_time()  # of one thread, so that other work on the machine does not count
        tables = plan.plan(load_sweep({str(tmp_path / "wsl.yml")!r}), 16 * 2**30)
        assert len(tables["pairs"]) == 12 and len(tables["steps"]) == 12
        assert 8.2e8 < tables["sweep"]["parameters"].item() < 8.3e8
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        print(time.process_time() - begun, int(peak) / 2**20)"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, gib = map(float, run.stdout.split())
    assert (seconds < 60, gib < 2) == (True, True), run.stdout
