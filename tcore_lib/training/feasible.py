"""What can be refused before a training starts: settings that must fail, and a checkpoint of another run."""

from typing import Any

from tcore_lib.errors import InputError
from tcore_lib.params import Params, dotted

# Settings that say how far and how a run goes on, not what it computes: they may change between parts of one run.
FREE = {
    "max_steps",
    "devices",
    "workers",
    "checkpoint_every",
    "keep_last",
    "milestone_every",
    "log_every",
    "tensorboard",
    "accumulate",
    "activation_checkpointing",
    "compile",
}


def refuse_other_run(content: dict[str, Any], params: Params, num_videos: int, origin: str) -> None:
    """A checkpoint is continued only with the settings that made it, as far as they change what is computed.

    Raises:
        InputError: names the first key that differs.
    """

    def fixed(dumped: dict[str, Any]) -> dict[str, Any]:
        settings = dotted(dumped["pretrain"], "pretrain") | {"run.seed": dumped["run"]["seed"]}
        loop = {f"pretrain.loop.{key}" for key in FREE} | {"pretrain.enabled"}
        return {key: value for key, value in settings.items() if key not in loop}

    before, now = fixed(content["params"]), fixed(params.model_dump(mode="json"))
    for key in sorted(set(before) | set(now)):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{key} = {now.get(key)!r}, but {origin} was trained with {before.get(key)!r}; set it back, or start "
                "anew in another output folder or with resume=False."
            )
    if content["num_videos"] != num_videos:
        raise InputError(
            f"The index holds {num_videos} videos, but {origin} was trained on {content['num_videos']}; use the same "
            "data, or start anew in another output folder."
        )


def check_feasible(params: Params, world: int) -> None:
    """Refuse what can be known to fail before anything starts.

    Raises:
        InputError: names the setting.
    """
    loop, loss = params.pretrain.loop, params.pretrain.loss
    own = loop.batch_size // (world * loop.accumulate)
    neighbours = own if loss.koleo_scope == "rank" else own * world
    if own and loss.koleo > 0 and neighbours < 2:
        raise InputError(
            f"KoLeo looks for a nearest neighbour, but a micro-batch holds {neighbours} sample of batch_size = "
            f"{loop.batch_size}; lower pretrain.loop.accumulate, raise batch_size, or set pretrain.loss.koleo: 0.0."
        )
