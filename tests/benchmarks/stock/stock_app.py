"""Flower's own FedAvg, as its documentation sets it up, on the work of a her2-map site.

The server is ``flwr.serverapp.strategy.FedAvg``, unchanged. A client is the installed Site: it
scores its validation cases and trains a round from the weights it gets, and sends the new weights
whole, as FedAvg wants them. ``times`` is a file with the wall time at the end of each round.
"""

from __future__ import annotations

import time
from pathlib import Path

import scaled  # noqa: F401 (the preset)
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from her2_client.site import Site
from her2_common import __version__
from her2_common.broadcast import fingerprint
from her2_common.config import RunConfig, SiteConfig, load
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.wire import TaskOrder

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    plan = RunConfig.model_validate_json(str(context.run_config["plan"]))
    times = Path(str(context.run_config["times"]))
    groups = get_groups(build_model(plan.preset, plan.seed, **plan.layout), GROUPS)

    def ended(_round: int, _arrays: ArrayRecord) -> MetricRecord:
        with times.open("a", encoding="ascii") as file:
            file.write(f"{time.time()}\n")
        return MetricRecord({"ended": 1})

    FedAvg(
        fraction_evaluate=0.0,  # the sites score in the order to train, as her2-map's do
        min_train_nodes=4,
        min_evaluate_nodes=4,
        min_available_nodes=4,
        train_metrics_aggr_fn=everybody,
    ).start(
        grid,
        ArrayRecord({name: Array(vector) for name, vector in groups.items()}),
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord({"plan": plan.model_dump_json()}),
        evaluate_fn=ended,
    )


def everybody(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    """FedAvg goes on without sites that failed; a benchmark must not."""
    if len(replies) != 4:
        raise RuntimeError(f"expected 4 replies, got {len(replies)}")
    return MetricRecord({"replies": len(replies)})


@client_app.train()
def train(message: Message, context: Context) -> Message:
    site = Site(load(SiteConfig, Path(str(context.node_config["site"]))))
    config = message.content["config"]
    weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
    order = TaskOrder(
        task="train",
        run="stock",
        version=__version__,
        round=int(config["server-round"]),
        weights={name: fingerprint(vector) for name, vector in weights.items()},
        plan=RunConfig.model_validate_json(config["plan"]),
    )
    answer = site.answer(order, weights)
    arrays = ArrayRecord(
        {name: Array(vector + answer.update[name]) for name, vector in weights.items()}
    )
    counts = answer.document.counts
    numbers = MetricRecord({"num-examples": counts["head"]})
    return Message(RecordDict({"arrays": arrays, "metrics": numbers}), reply_to=message)
