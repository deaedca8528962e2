"""`drumline check --gpu`: what it chooses, what it says, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.check import estimate_memory
from trainer.cli import main
from trainer.config import plan_batches
from trainer.config_io import load_config
from trainer.errors import ConfigError
from trainer.planning.assumptions import assume
from trainer.planning.plan import Plan, make_plan
from trainer.planning.report import bound_by, planning_report
from trainer.planning.request import Request, amount_of_memory, bandwidth, duration, rate
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_flops_per_token, run_parameters

ROOT = Path(__file__).parents[2]
GPT2 = ROOT / "configs/gpt2-124m.yaml"
SIZES = Sizes(50_257)
NODES = Request("h100", num_nodes=4, devices_per_node=8, bandwidth=50e9)
PAIR = "model={family: encoder_decoder, num_layers: 2, num_decoder_layers: 3, num_heads: 2, width: 8}"
TRANSLATION = ["task=translation", "data.format=jsonl", "data.target_length=12", "data.train=[{path: a.jsonl}]", PAIR]


def plan(request: Request, *overrides: str) -> Plan:
    config = load_config(GPT2, list(overrides))
    return make_plan(config, assume(request, config), SIZES)


def lines_of(report: str) -> dict[str, str]:
    """The text of each line by its name."""
    table = report.partition("\n\n")[0].splitlines()
    width = re.match(r"run +", table[0]).end()  # type: ignore[union-attr]
    return {line[:width].strip(): line[width:] for line in table}


def test_the_choice_is_the_largest_micro_batch_that_fits_by_the_estimate_of_check() -> None:
    memory = 24e9
    made = plan(Request("h100", 1, 8, memory=memory))
    config, rows = made.config, made.chosen.batch.rows_per_micro_batch

    def total(rows: int) -> int:
        batch = made.chosen.batch
        divided = type(batch)(batch.global_batch_size, 8, 60 // rows, rows)
        return estimate_memory(config, divided, run_parameters(config, SIZES), 50_257).total

    divisors = [rows for rows in range(1, 61) if 60 % rows == 0]
    assert rows == max(each for each in divisors if total(each) <= 0.8 * memory)
    assert rows < 60
    assert made.chosen.recompute == "none"
    assert made.chosen.memory.total == total(rows)


def test_blocks_are_recomputed_where_nothing_else_fits_and_cost_a_forward_pass_of_them() -> None:
    # The memory lies between what one row takes with and without recomputation.
    tight = [each for each in plan(Request("h100", 1, 1)).choices if each.batch.rows_per_micro_batch == 1]
    without, blocks = tight
    assert (without.recompute, blocks.recompute) == ("none", "blocks")
    between = (without.memory.total + blocks.memory.total) / 2
    made = plan(Request("h100", 1, 1, memory=between, memory_share=1.0))
    assert made.chosen.recompute == "blocks"
    scores = 6 * 50_257 * 768
    flops = run_flops_per_token(made.config, SIZES)
    assert made.chosen.time.compute / without.time.compute == pytest.approx(1 + (flops - scores) / flops / 3)


def test_what_is_recommended_is_what_check_estimates_when_it_is_given() -> None:
    tight = [each for each in plan(Request("h100", 1, 1)).choices if each.batch.rows_per_micro_batch == 1]
    least = min(each.memory.total for each in tight)
    request = Request("h100", 1, 1, memory=least, memory_share=1.0)
    settings = lines_of(planning_report(load_config(GPT2), request))["chosen"].partition(":")[0].split()
    assert settings == ["train.micro_batch_size=1", "model.recompute=blocks"]
    config = load_config(GPT2, settings)
    given = estimate_memory(config, plan_batches(config.train, 1), run_parameters(config, SIZES), 50_257)
    assert given == next(each.memory for each in tight if each.recompute == "blocks")


def test_recomputed_blocks_keep_their_inputs_and_one_layers_activations() -> None:
    made = plan(Request("h100", 1, 8))
    blocks = next(each for each in made.choices if each.recompute == "blocks" and each.batch.rows_per_micro_batch == 1)
    keys = (256 + 512 + 768 + 1024) // 4  # that a query is held against, on average over its blocks
    a_layer = 4 * 768 + 3 * 768 + 12 * keys + 768 + 2 * 4 * 768
    kept = (12 + 2) * 768
    assert blocks.memory.activations == 1024 * (2 * (kept + a_layer) + 8 * 50_257)


def test_recomputed_blocks_of_a_pair_add_up_by_hand(small_config: Path) -> None:
    """Rows of 16 and 12 tokens; 2 heads of 4, 2 and 3 layers; the decoder's layer is the larger."""
    config = load_config(small_config, TRANSLATION)
    made = make_plan(config, assume(Request("h100", 1, 1), config), Sizes(300))
    blocks = next(each for each in made.choices if each.recompute == "blocks" and each.batch.rows_per_micro_batch == 8)
    decoder_layer = 12 * (4 * 8 + 24 + 2 * 12 + 8 + 32 + 32 + (2 * 8 + 2 * 8 + 2 * 16)) + 16 * 2 * 8
    kept = 16 * (2 + 2) * 8 + 12 * (3 + 2) * 8
    assert blocks.memory.activations == 8 * (4 * (kept + decoder_layer) + 12 * 8 * 300)


def test_a_run_that_does_not_fit_says_by_how_much() -> None:
    made = plan(Request("h100", 1, 8, memory=2e9, memory_share=0.5))
    assert not made.fits(made.chosen)
    assert made.chosen.memory.total == min(each.memory.total for each in made.choices)
    excess = (made.chosen.memory.total - 1e9) / 2**30
    assert f"it does not fit, by {excess:.1f} GiB" in bound_by(made)


def test_what_bounds_the_step_follows_the_network() -> None:
    def bound(request: Request, batch: int) -> str:
        return bound_by(plan(request, f"train.global_batch_size={batch}", "train.micro_batch_size=null"))

    assert bound(NODES, 32).startswith("the network")
    assert bound(Request("h100", 4, 8, bandwidth=5e12), 3200).startswith("compute")
    assert bound(Request("h100", 1, 1, utilization=1.0, memory_bandwidth=1e9), 1).startswith(
        "the memory bandwidth of the update"
    )


def test_a_slower_network_costs_efficiency_and_days() -> None:
    fast, slow = (plan(Request("h100", 4, 8, bandwidth=rate)).chosen.time for rate in (50e9, 5e9))
    assert slow.efficiency < fast.efficiency < 1
    assert slow.total > fast.total


def test_mixup_computes_two_rows_for_one(small_config: Path) -> None:
    overrides = ["task=classification", "data.format=jsonl", "data.labels=[no, yes]", "data.train=[{path: a.jsonl}]"]
    overrides.append("model={family: bert, num_layers: 2, num_heads: 2, width: 8}")
    once, twice = (
        make_plan(config, assume(Request("h100", 1, 1), config), Sizes(300, 2)).chosen.time.compute
        for config in (load_config(small_config, [*overrides, *more]) for more in ([], ["data.augmentation.mixup=0.2"]))
    )
    assert twice == pytest.approx(2 * once)


def test_the_report_adds_up() -> None:
    config = load_config(GPT2)
    printed = planning_report(config, Request("h100", 4, 8, bandwidth=50e9, price=2.0))
    lines, time = lines_of(printed), plan(NODES).chosen.time
    assert lines["run"] == "gpt2-124m: 600,000 steps on 4 nodes of 8 h100"
    assert "480 sequences of 1,024 = 32 replicas x 1 micro-batch x 15 sequences" in lines["batch"]
    assert lines["chosen"].startswith("train.micro_batch_size=480 model.recompute=none")
    assert lines["efficiency"].startswith(f"{time.efficiency:.1%}")
    assert lines["speed"].startswith(f"{480 * 1024 / time.total:,.0f} tokens/s")
    hours = 600_000 * time.total / 3600 * 32
    assert lines["in all"] == f"{hours / 32 / 24:,.3g} days, {hours:,.4g} GPU-hours, which cost {2 * hours:,.2f}"
    for part in ("weights", "gradients", "AdamW's moments", "activations", "compute", "reduction", "update"):
        assert lines[part]


def test_every_figure_is_named_with_what_changes_it() -> None:
    printed = planning_report(load_config(GPT2), NODES).partition("\n\n")[2]
    for name in ("--flops", "--utilization", "--memory", "--memory-share", "--memory-bandwidth", "--link-bandwidth"):
        assert re.search(rf"^  {name} ", printed, re.MULTILINE), name
    assert re.search(r"^  --bandwidth +50GB/s +.*as given$", printed, re.MULTILINE)
    assert re.search(r"^  --latency +14us +.*default", printed, re.MULTILINE)
    assert "989TFLOP/s" in printed and "data sheet of the H100" in printed


def test_check_prints_a_plan_where_a_device_is_named_and_its_usual_report_where_none_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["check", str(GPT2), "train.global_batch_size=512", "train.micro_batch_size=null"]
    command += ["--nodes", "64", "--gpus-per-node", "8", "--gpu", "h100", "--bandwidth", "400Gb/s"]
    assert main(command) == 0
    assert "64 nodes of 8 h100" in capsys.readouterr().out
    assert main(["check", str(GPT2), "--replicas", "8"]) == 0
    assert "bound by" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--gpu h10", "did you mean h100?"),
        ("--nodes 2", "--nodes: got it without --gpu"),
        ("--gpu h100 --nodes 2", "--bandwidth: got none for 2 nodes"),
        ("--gpu h100 --bandwidth 400Gb/s", "--bandwidth: got it with 1 node"),
        ("--gpu h100 --latency 5us", "--latency: got it with 1 node"),
        ("--gpu h100 --link-latency 5us", "--link-latency: got it with 1 device a node"),
        ("--gpu h100 --replicas 8", "--replicas: got it with --gpu"),
        ("--gpu cpu --flops 50GFLOP/s", "give --utilization, --memory, --memory-bandwidth too"),
        ("--gpu h100 --nodes 2 --bandwidth 400", "got '400', expected a number above 0 and its unit, such as 400Gb/s"),
        ("--gpu h100 --nodes 2 --bandwidth 400Gbps", "got '400Gbps'"),
        ("--gpu h100 --nodes 2 --bandwidth 0Gb/s", "got '0Gb/s'"),
        ("--gpu h100 --memory 80Gb", "got '80Gb', expected a number above 0 and its unit, such as 80GB"),
        ("--gpu h100 --flops 10TFLOPS", "such as 50GFLOP/s"),
        ("--gpu h100 --utilization 1.5", "expected a number above 0 and up to 1"),
        ("--gpu h100 --price -1", "expected"),
        ("--gpu v100-16gb", "train.precision: got bfloat16, which v100-16gb has no matrix units for"),
        ("--gpu h100 --gpus-per-node 7", "train.global_batch_size: got 480, expected a multiple"),
        ("--gpu h100 --gpus-per-node 2 distribution.backend=single", "distribution.backend: got single"),
        ("--gpu h100 --nodes 2 --bandwidth 1GB/s distribution.backend=mirrored", "got mirrored, expected horovod or"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(
    options: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(GPT2), *options.split()]) == 2
    assert expected in capsys.readouterr().err


def test_the_configuration_must_agree_with_the_devices(small_config: Path) -> None:
    config = load_config(small_config, ["distribution={backend: mirrored, num_replicas: 2}"])
    with pytest.raises(ConfigError, match=r"distribution\.num_replicas: got 2"):
        assume(Request("h100", 1, 4), config)
    assume(Request("h100", 1, 2), config)


def test_bits_and_bytes_are_told_apart() -> None:
    assert bandwidth("400Gb/s") == bandwidth("50GB/s") == bandwidth("0.05 TB/s") == pytest.approx(50e9)
    assert bandwidth("1GiB/s") == 2**30
    assert duration("14us") == pytest.approx(14e-6)
    assert duration("0.5ms") == pytest.approx(5e-4)
    assert rate("1.5PFLOP/s") == pytest.approx(1.5e15)
    assert (amount_of_memory("80GB"), amount_of_memory("24GiB")) == (80e9, 24 * 2**30)


def test_the_tables_beside_published_figures_are_what_the_planner_computes() -> None:
    """Line for line: docs/scaling.md says which program prints them."""
    command = [sys.executable, str(ROOT / "benchmarks/scaling_tables.py")]
    printed = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True)
    written = (ROOT / "docs/scaling.md").read_text()
    tables = [table for table in printed.stdout.strip().split("\n\n") if table]
    assert len(tables) == 3
    for table in tables:
        assert table in written


def test_the_example_of_the_guide_is_what_check_prints(capsys: pytest.CaptureFixture[str]) -> None:
    written = (ROOT / "docs/scaling.md").read_text()
    match = re.search(r"^```sh\n(drumline check configs/gpt2-124m.*?)\n```\n+```text\n(.*?)```$", written, re.M | re.S)
    assert match
    command = match[1].replace("\\\n", " ").split()
    assert main([str(ROOT / word) if word.startswith("configs/") else word for word in command[1:]]) == 0
    assert capsys.readouterr().out.partition("\n\n")[0] == match[2].strip()
