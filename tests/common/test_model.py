"""The MAP model: every subset of modalities, no dealings between cases, groups bit for bit."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_common.cases import MODALITIES, Modality
from her2_common.errors import ConfigError, UpdateError
from her2_common.model import (
    CHANNELS,
    GROUPS,
    PRESETS,
    Batch,
    MapModel,
    MapOutput,
    build_model,
    get_groups,
    group_parameters,
    group_sizes,
    preset,
    preset_sizes,
    set_groups,
)

SIDE = {"mg": 32, "us": 32, "mri": 16}
SUBSETS = tuple(s for size in (1, 2, 3) for s in combinations(MODALITIES, size))


def image(modality: Modality, case: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * MODALITIES.index(modality) + case)
    sides = 3 if modality == "mri" else 2
    return torch.randn(CHANNELS[modality], *[SIDE[modality]] * sides, generator=generator)


def clinical(case: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(case))


def make_batch(cases: list[int], has: list[tuple[Modality, ...]]) -> Batch:
    """A batch of the given cases; case ``cases[i]`` has the modalities ``has[i]``."""
    images, rows = {}, {}
    for modality in MODALITIES:
        present = [i for i, names in enumerate(has) if modality in names]
        if present:
            images[modality] = torch.stack([image(modality, cases[i]) for i in present])
            rows[modality] = torch.tensor(present)
    return Batch(images, rows, torch.stack([clinical(c) for c in cases]))


@pytest.fixture(scope="module")
def model() -> MapModel:
    return build_model("compact", 1)


@torch.no_grad()
def run(model: MapModel, batch: Batch) -> MapOutput:
    return model(batch)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_subset_of_modalities_predicts(model: MapModel, subset: tuple[Modality, ...]) -> None:
    output = run(model, make_batch([1, 2], [subset, subset]))
    assert output.fused.shape == (2, 2)
    assert torch.isfinite(output.fused).all()
    assert tuple(output.single) == subset
    assert all(logits.shape == (2, 2) for logits in output.single.values())


def test_one_modality_alone_is_the_fused_score(model: MapModel) -> None:
    """The mean over one feature is that feature: fused and single are the same map."""
    for modality in MODALITIES:
        output = run(model, make_batch([1, 2, 3], [(modality,)] * 3))
        torch.testing.assert_close(output.fused, output.single[modality], rtol=0, atol=1e-6)


def test_fusion_is_the_mean_of_the_features(model: MapModel) -> None:
    output = run(model, make_batch([4], [MODALITIES]))
    mean = torch.stack([output.features[m][0] for m in MODALITIES]).mean(0)
    with torch.no_grad():
        expected = model.head(mean) + model.clinical(clinical(4))
    torch.testing.assert_close(output.fused[0], expected, rtol=0, atol=1e-6)


def test_three_levels_have_a_third_output_and_the_first_two_stay() -> None:
    batch = make_batch([1, 2], [("mg",), ("mri", "us")])
    two, three = build_model("compact", 1), build_model("compact", 1, levels=3)
    assert group_sizes(three)["head"] - group_sizes(two)["head"] == 129
    assert group_sizes(three)["clinical"] - group_sizes(two)["clinical"] == 5
    output = run(three, batch)
    assert output.fused.shape == (2, 3)
    assert output.single["mri"].shape == (1, 3)


@settings(deadline=None, max_examples=12)
@given(has=st.lists(st.sampled_from(SUBSETS), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_case_is_scored_the_same_alone_and_in_company(
    has: list[tuple[Modality, ...]], seed: int
) -> None:
    """Exact in real numbers; to 1e-6 in float32, as a convolution may sum in another order when
    the batch has another size."""
    model = build_model("compact", 1)
    cases = [seed + i for i in range(len(has))]
    together = run(model, make_batch(cases, has))
    for i, case in enumerate(cases):
        alone = run(model, make_batch([case], [has[i]]))
        torch.testing.assert_close(together.fused[i], alone.fused[0], rtol=0, atol=1e-6)
        for modality in has[i]:
            row = together.rows[modality].tolist().index(i)
            torch.testing.assert_close(
                together.single[modality][row], alone.single[modality][0], rtol=0, atol=1e-6
            )


def test_the_same_batch_gives_the_same_bits_in_train_and_eval(model: MapModel) -> None:
    batch = make_batch([1, 2, 3], [("mg", "us"), ("mri",), MODALITIES])
    model.train()
    first = run(model, batch)
    model.eval()
    second = run(model, batch)
    assert torch.equal(first.fused, second.fused)


@pytest.mark.parametrize("subset", SUBSETS[:-1], ids="+".join)
def test_an_absent_modality_gets_no_gradient(subset: tuple[Modality, ...]) -> None:
    model = build_model("compact", 1)
    output = model(make_batch([1, 2], [subset, subset]))
    (output.fused.sum() + sum(logits.sum() for logits in output.single.values())).backward()
    for modality in MODALITIES:
        gradients = [p.grad for p in group_parameters(model, modality)]
        if modality in subset:
            assert any(bool(g.abs().sum() > 0) for g in gradients if g is not None)
        else:
            assert gradients == [None] * len(gradients)


def test_a_case_without_a_modality_adds_nothing_to_its_gradient() -> None:
    """Where one case has mammography and another has not, the encoder's gradient of the fused
    logits is, to rounding, the one of the first case alone."""
    gradients = []
    for cases, has in (([1, 2], [("mg",), ("us",)]), ([1], [("mg",)])):
        model = build_model("compact", 1)
        model(make_batch(cases, has)).fused.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in group_parameters(model, "mg")]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_batch_with_no_modality_is_refused(model: MapModel) -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        model(Batch({}, {}, torch.zeros(2, 5)))


def test_shapes_are_checked_in_tests() -> None:
    """Fails if tests/conftest.py no longer installs the run-time checks."""
    with pytest.raises(Exception, match="Type-check error"):
        Batch({}, {}, torch.zeros(2, 6))


def test_no_running_statistics(model: MapModel) -> None:
    assert list(model.buffers()) == []


def test_size_and_groups(model: MapModel) -> None:
    total = sum(p.numel() for p in model.parameters())
    assert total < 5_000_000
    sizes = group_sizes(model)
    assert tuple(sizes) == GROUPS
    assert sum(sizes.values()) == total  # every parameter stands in exactly one group
    features = PRESETS["compact"].features
    assert (sizes["clinical"], sizes["head"]) == (10, 2 * features + 2)


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> np.ndarray:
        return np.concatenate(list(get_groups(build_model("compact", seed), GROUPS).values()))

    torch.manual_seed(5)
    first = weights(3)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    second = weights(3)
    assert first.tobytes() == second.tobytes()
    assert weights(4).tobytes() != first.tobytes()
    torch.manual_seed(5)
    weights(3)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's stream is left alone


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.preset: expected one of paper, .*, got 'huge'"):
        preset("huge")


def test_sizes_replace_those_of_the_preset() -> None:
    plan = preset("paper", image_size=64)
    assert (plan.image_size, plan.volume_size) == (64, PRESETS["paper"].volume_size)
    assert PRESETS["paper"].image_size == 256


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_known_without_a_model(name: str) -> None:
    """The sizes come from shapes alone; here they meet those of real weights."""
    sizes = {"image_size": 32, "volume_size": 16}
    assert preset_sizes(name, **sizes) == group_sizes(build_model(name, 0, **sizes))


@pytest.mark.parametrize("group", GROUPS)
def test_groups_come_back_bit_for_bit(group: str) -> None:
    model = build_model("compact", 1)
    before = get_groups(model, GROUPS)
    rng = np.random.default_rng(7)
    vector = rng.normal(size=before[group].size).astype(np.float32)
    vector[:3] = (-0.0, np.finfo(np.float32).tiny / 4, np.finfo(np.float32).max)  # -0, subnormal
    set_groups(model, {group: vector})
    after = get_groups(model, GROUPS)
    assert after[group].tobytes() == vector.tobytes()
    for other in set(GROUPS) - {group}:
        assert after[other].tobytes() == before[other].tobytes()


def test_get_groups_gives_copies() -> None:
    model = build_model("compact", 1)
    get_groups(model, ["head"])["head"][:] = 0
    assert np.any(get_groups(model, ["head"])["head"])


@pytest.mark.parametrize(
    "bad",
    [
        {"head": np.zeros(3, np.float32)},
        {"head": np.zeros((1, 258), np.float32)},
        {"tail": np.zeros(258, np.float32)},
        {"head": np.float32(1)},
    ],
    ids=["short", "two axes", "unknown", "scalar"],
)
def test_wrong_vectors_leave_the_model_untouched(bad: dict[str, np.ndarray]) -> None:
    model = build_model("compact", 1)
    before = get_groups(model, GROUPS)
    good = {"clinical": np.ones(10, np.float32)}
    with pytest.raises(UpdateError, match="expected") as caught:
        set_groups(model, good | bad)
    assert caught.value.reason == "misshapen"
    after = get_groups(model, GROUPS)
    assert all(after[g].tobytes() == before[g].tobytes() for g in GROUPS)
