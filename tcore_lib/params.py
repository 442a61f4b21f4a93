"""Parameter files: what may stand in one, how it is read and refused, and what its paths mean.

A parameter file (`params/*.yaml`) is one profile of the whole reproduction. Its sections are the fields of `Params`; what is
missing takes the default written here, which is the paper's (T-CoRe, K400, ViT-S/16; protocol of its evaluation).

**Paths.** A relative path in a parameter file is relative to the folder of that file; on the command line (`--set` too) to
the working folder. `Params` holds paths inside the project relative to `project_root()`, so that results say the same on
every machine, and others absolute; `resolve` makes a path of them.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from tcore_lib.errors import InputError, known_names
from tcore_lib.files import read_text, reading, write_text


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the first value must not exceed the second")
    return interval


# Strict scalars: YAML reads `1e-4` as a string and `yes` as a boolean; neither may slip through as a number.
Float = Annotated[float, Strict()]
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Positive = Annotated[Int, Field(ge=1)]
Count = Annotated[Int, Field(ge=0)]
NonNegative = Annotated[Float, Field(ge=0.0)]
AboveZero = Annotated[Float, Field(gt=0.0)]
Share = Annotated[Float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[Float, Field(ge=0.0, lt=1.0)]
Part = Annotated[Float, Field(gt=0.0, le=1.0)]  # a share that is not nothing
Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]  # a range
Parts = Annotated[tuple[Part, Part], AfterValidator(_ordered)]
Interval = Annotated[tuple[AboveZero, AboveZero], AfterValidator(_ordered)]
Size = tuple[Positive, Positive]  # pixels
VideoSide = Annotated[Int, Field(ge=32, multiple_of=2)]
Layout = Literal["auto", "videos", "frames", "images"]
Upsampling = Literal["linear", "nearest"]


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A setting with its meaning, which notebooks show beside the value."""
    return Field(default, description=description, **limits)


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def rules(self) -> Iterator[tuple[bool, str]]:
        """What must hold between settings, with the sentence for where it does not; later ones may rely on earlier ones."""
        return iter(())

    @model_validator(mode="after")
    def _follows_the_rules(self) -> Self:
        for holds, sentence in self.rules():
            if not holds:
                raise ValueError(sentence)
        return self


class Run(Section):
    """Which run this is, where it goes and what it runs on."""

    name: str = setting("run", "folder name under `results`", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = setting("", "one line for the table: what this run is")
    seed: Count = setting(0, "every random choice follows from it")
    device: str = setting("auto", "auto = the first GPU, else the CPU", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    results: str = setting("results", "folder that holds the run folders")


class SyntheticData(Section):
    """What the embedded renderer draws when `data.source` is `synthetic`. Sizes are (width, height) in pixels."""

    videos: Positive = setting(48, "mini Kinetics: number of .mp4 clips")
    classes: Positive = setting(6, "mini Kinetics: number of class folders (kinds of motion)", le=10)
    video_size: tuple[VideoSide, VideoSide] = setting((340, 256), "mini Kinetics: frame size; both even")
    video_seconds: AboveZero = setting(4.0, "mini Kinetics: length of a clip")
    fps: Positive = setting(15, "frames per second of the .mp4 files")
    davis_clips: Positive = setting(4, "mini DAVIS: number of clips; every second one is not 854x480")
    jhmdb_clips: Positive = setting(4, "mini JHMDB: number of test clips, 320x240")
    vip_clips: Positive = setting(3, "mini VIP: number of clips")
    eval_frames: Int = setting(16, "frames per benchmark clip", ge=3)
    seed: Count | None = setting(None, "of the pictures; null = run.seed")


class Data(Section):
    """From videos on disk to frame folders and an index."""

    source: str = setting("synthetic", "`synthetic`, or a folder of videos, frame folders or images")
    layout: Layout = setting("auto", "what `source` holds")
    annotations: str | None = setting(None, "official CSV (label, youtube_id, time_start, time_end, split)")
    root: str = setting("data/run", "folder of the prepared frames, the index and the synthetic benchmarks")
    split: str = setting("train", "folder under `frames/`", pattern=r"^[A-Za-z0-9_-]+$")
    num_frames: Positive = setting(20, "frames kept per video, spread evenly")
    short_side: Positive = setting(256, "short side of kept frames in pixels; smaller videos stay as they are")
    workers: Positive | None = setting(None, "processes that decode; null = one per core")
    shards: str | None = setting(None, "folder of tar shards (`tcore shard`), read instead of frames")
    synthetic: SyntheticData = SyntheticData()


class Sandwich(Section):
    """Which three frames of a video make one sample. Ranges are shares of the number of frames."""

    current_range: Shares = (0.3, 0.7)
    past_offset_range: Shares = (0.15, 0.25)
    future_offset_range: Shares = (0.15, 0.25)

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        past = self.current_range[0] - self.past_offset_range[1]
        future = self.current_range[1] + self.future_offset_range[1]
        yield past >= 0, "the past frame would lie before the clip: lower past_offset_range or raise current_range"
        yield future <= 1, "the future frame would lie after the clip: lower future_offset_range or current_range"


class Views(Section):
    """Crops and photometry. Sizes in pixels, scales are shares of the frame's area."""

    global_size: Positive = 224
    local_size: Positive = 96
    num_local: Count = 8
    global_scale: Parts = (0.32, 1.0)
    local_scale: Parts = (0.05, 0.32)
    ratio: Interval = setting((0.75, 4 / 3), "width / height of a crop's box")
    local_flip: Share = setting(0.5, "probability of a horizontal flip of a local crop; global crops never flip")
    jitter: Share = setting(0.8, "probability of colour jitter")
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: Float = Field(0.1, ge=0.0, le=0.5)
    grayscale: Share = 0.2
    blur_global_1: Share = setting(0.0, "probability of blur as trained; the released code names it 1.0")
    blur_global_2: Share = setting(0.9, "probability of blur as trained; the released code names it 0.1")
    blur_local: Share = 0.5
    blur_sigma: Interval = (0.1, 2.0)
    blur_kernel: Positive = setting(9, "odd width of the Gaussian kernel in pixels")
    solarize_global_2: Share = 0.2

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        yield self.blur_kernel % 2 == 1, "blur_kernel must be odd"
        yield self.blur_kernel < 2 * self.local_size, "blur_kernel must be below twice local_size: it mirrors borders"


class Masks(Section):
    """Block masks on the global crops of the current frame."""

    share: Share = setting(0.5, "share of the global crops that are masked")
    ratio: Shares = setting((0.1, 0.5), "range of the masked share of a masked crop's patches")


ARCHITECTURES = {  # width, depth, heads
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


class Encoder(Section):
    """The vision transformer that is trained."""

    arch: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"] = "vit_small"
    width: Positive | None = setting(None, "token width; only with arch: custom")
    depth: Positive | None = setting(None, "number of blocks; only with arch: custom")
    heads: Positive | None = setting(None, "attention heads; only with arch: custom")
    patch_size: Positive = 16
    registers: Count = 4
    drop_path: BelowOne = setting(0.1, "stochastic depth, same in every block")
    layer_scale: AboveZero | None = setting(1e-5, "initial value of LayerScale; null = without")
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "swiglu = gated, as in DINOv2's largest network")
    mlp_ratio: AboveZero = setting(4.0, "width of the MLP's first layer / token width")
    qkv_bias: Bool = True
    img_size: Positive | None = setting(None, "pixels: side of the image with a position per patch; null = global_size")
    # Continue from this encoder, whose shape the settings above must be (an error says which ones are):
    init: str | None = setting(None, "file | folder | vits16_k400 | vits16_inet | vitb16_k400 | timm:NAME")

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        given = {value is not None for value in (self.width, self.depth, self.heads)}
        yield self.arch != "custom" or given == {True}, "arch: custom needs width, depth and heads"
        yield self.arch == "custom" or given == {False}, "width, depth and heads are only read with arch: custom"
        width, _, heads = self.shape
        yield width % heads == 0, "width must be a multiple of heads"
        yield (self.img_size or 0) % self.patch_size == 0, "img_size must be a multiple of patch_size"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(width, depth, heads)."""
        return ARCHITECTURES.get(self.arch) or (self.width or 1, self.depth or 1, self.heads or 1)


class Decoder(Section):
    """The auxiliary decoder that restores masked patches from past and future."""

    enabled: Bool = setting(True, "false = plain DINO + iBOT on the current frame")
    branches: Literal["both", "past", "future"] = setting("both", "which auxiliary frames are used")
    num_blocks: Positive = 1
    heads: Positive = 16
    attn_mul: Float = setting(4.0, "factor on the cross-attention before its residual")


class Head(Section):
    """Projection head onto prototypes, shared by CLS tokens and patches."""

    prototypes: Positive = 65536
    hidden: Positive = 2048
    bottleneck: Positive = 256
    layers: Positive = 3


class Loss(Section):
    """Weights and temperatures."""

    dino: NonNegative = 1.0
    koleo: NonNegative = 0.1
    patch_past: NonNegative = 0.8
    patch_future: NonNegative = 0.8
    agreement: NonNegative = 20.0
    student_temperature: AboveZero = 0.1
    centre_momentum: BelowOne = 0.9
    patch: NonNegative = setting(0.8, "weight of the iBOT term when the decoder is off")


class Optimiser(Section):
    """AdamW and its schedules. Epochs may be fractions."""

    epochs: AboveZero = 400.0
    iterations_per_epoch: Positive = 936
    warmup_epochs: NonNegative = 20.0
    base_lr: AboveZero = setting(0.002, "peak lr = base_lr * sqrt(global batch / 1024)")
    min_lr: NonNegative = 1.0e-6
    decoder_lr: AboveZero = setting(0.1, "the decoder's lr as a multiple of the schedule's peak")
    weight_decay: NonNegative = 0.04
    weight_decay_end: NonNegative = 0.4
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    clip_grad: NonNegative = setting(3.0, "largest gradient norm of each module; 0 = no clipping")
    layer_decay: Part = 0.9
    patch_embed_lr: AboveZero = setting(0.2, "further lr multiplier of the patch embedding")
    lr_multipliers: Bool = setting(True, "false = one lr for all but the decoder (code before October 2025)")
    encoder_lr: AboveZero = setting(1.0, "the encoder's lr as a multiple of the schedule's")
    hold_steps: Count = setting(0, "steps with the encoder held (lr 0), heads and decoder learning; for `encoder.init`")
    freeze_last_layer_epochs: NonNegative = setting(1.0, "prototypes get lr 0 that long")
    momentum: Share = setting(0.992, "EMA momentum of the teacher at the start")
    momentum_end: Share = 1.0
    teacher_temperature: AboveZero = 0.04
    teacher_temperature_end: AboveZero = 0.07
    teacher_temperature_epochs: NonNegative = 30.0

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        yield self.warmup_epochs <= self.epochs, "warmup_epochs must not exceed epochs"


class Loop(Section):
    """How the training runs: batch, precision, checkpoints, logging."""

    batch_size: Positive = setting(256, "samples per optimiser step over all ranks and accumulation steps")
    accumulate: Positive = setting(1, "micro-batches per step and rank")
    max_steps: Count | None = setting(None, "stop after this many steps of the schedule; null = all of it")
    devices: Positive = setting(1, "processes (one per GPU) the notebook starts; torchrun sets its own")
    precision: Literal["auto", "fp32", "bf16", "fp64"] = setting("auto", "auto = bf16 on GPUs, else fp32")
    workers: Count | None = setting(None, "loader processes per rank; null = by cores")
    checkpoint_every: Positive = setting(936, "steps between checkpoints")
    keep_last: Positive = setting(2, "newest checkpoints kept; milestones stay besides")
    milestone_every: Positive | None = setting(None, "steps between checkpoints that are kept for good")
    log_every: Positive = setting(10, "steps between log lines; losses leave the device only then")
    compile: Bool = setting(False, "on a GPU: torch.compile for blocks, losses, views; needs a C compiler")
    # Where the log's rows go besides log.csv; needs the package of that name.
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"


class Pretrain(Section):
    """Notebook 01."""

    enabled: Bool = setting(True, "false = this profile only evaluates")
    encoder: Encoder = Encoder()
    sandwich: Sandwich = Sandwich()
    views: Views = Views()
    masks: Masks = Masks()
    decoder: Decoder = Decoder()
    head: Head = Head()
    loss: Loss = Loss()
    optimiser: Optimiser = Optimiser()
    loop: Loop = Loop()

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        patch, width = self.encoder.patch_size, self.encoder.shape[0]
        whole = self.views.global_size % patch == self.views.local_size % patch == 0
        divides = not self.decoder.enabled or width % self.decoder.heads == 0
        yield whole, f"views.global_size and views.local_size must be a multiple of encoder.patch_size ({patch})"
        yield divides, f"decoder.heads must divide the encoder's width ({width})"
        yield self.loop.batch_size % self.loop.accumulate == 0, "loop.batch_size must be a multiple of loop.accumulate"
        pairs = self.loop.batch_size >= 2 * self.loop.accumulate * self.loop.devices
        yield (
            pairs or self.loss.koleo == 0,
            "KoLeo needs two samples in a micro-batch: lower loop.accumulate or loop.devices",
        )


class Checkpoint(Section):
    """Notebook 02: which encoder is inspected, and which ones are evaluated."""

    # Name in the table -> run (this run's teacher; run@480: after that step) | random (its initialisation) | pixels, pixels:8 (no
    # network, patches of 16 or 8: what any encoder has to beat) | file or folder | vits16_k400 ... | timm:NAME
    encoders: dict[str, str] = Field({"pretrained": "run", "random": "random", "pixels": "pixels"}, min_length=1)
    model: str | None = setting(None, "a model file whose decoder is looked at; null = this run's checkpoint")
    paper_rows: dict[str, str] = setting({}, "name in the table -> file in results/paper.csv it is compared with")

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        unknown = sorted(set(self.paper_rows) - set(self.encoders))
        yield not unknown, f"paper_rows names {unknown}, which encoders does not"


class Benchmark(Section):
    """What the three benchmarks share."""

    enabled: Bool = setting(True, "false = shown as not run")
    root: str = setting("synthetic", "folder in the benchmark's own layout, or `synthetic` (drawn by notebook 00)")
    clips: list[str] | None = setting(None, "clip names; null = the whole split")
    top_k: Positive = setting(7, "most similar patches that vote")
    temperature: AboveZero = setting(0.7, "of the softmax over their similarities")
    radius: AboveZero = setting(20.0, "patches; a context patch counts if its distance is below it")
    context: Positive = setting(20, "preceding frames that vote, besides the first")
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "of the encoder; the search is in float32")
    radius_inclusive: Bool = setting(False, "variant: distance <= radius (DINO)")
    restrict_first: Bool = setting(False, "variant: the radius holds for the long memory, frame 0, too")
    repeat_first: Bool = setting(True, "false = variant: frame 0 does not stand in for missing frames")


class Davis(Benchmark):
    """Notebook 03: DAVIS-2017 val, J&F."""

    split: str = setting("val", "ImageSets/2017/<split>.txt")
    input_size: Size = setting((480, 880), "(height, width) the frames are resized to")
    upsampling: Upsampling = setting("linear", "of soft maps; nearest = variant (DINOv3)")
    score_size: Literal["native", "input"] = setting("native", "of masks; input = variant (CropMAE, RSP)")


class Jhmdb(Benchmark):
    """Notebook 04: JHMDB test clips of split 1, PCK."""

    split: Positive = setting(1, "splits/*_test_split<n>.txt")
    input_size: Size = setting((320, 320), "(height, width) the frames are resized to")


class Vip(Benchmark):
    """Notebook 05: VIP val, mean IoU."""

    top_k: Positive = setting(10, "most similar patches that vote")
    split: str = setting("val", "lists/<split>_videos.txt")
    long_side: Positive = setting(880, "long side of the input; the short side is floored to a multiple of 64")
    upsampling: Upsampling = setting("linear", "of soft maps; nearest = variant (DINOv3)")


class Attention(Section):
    """Notebook 06: what is looked at."""

    videos: Positive = setting(2, "videos of the index whose attention is drawn")
    patches: Positive = setting(3, "query patches per video")
    clip_frames: Int = setting(8, "frames in the correspondence explorer", ge=2)


class Params(Section):
    """A whole parameter file."""

    run: Run = Run()
    data: Data = Data()
    pretrain: Pretrain = Pretrain()
    checkpoint: Checkpoint = Checkpoint()
    davis: Davis = Davis()
    jhmdb: Jhmdb = Jhmdb()
    vip: Vip = Vip()
    attention: Attention = Attention()

    def digest(self, *sections: str) -> str:
        """Hex SHA-256 of the named sections (all by default) with every default filled in."""
        dumped = self.model_dump(mode="json", include=set(sections) or None)
        return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()


SECTIONS = tuple(Params.model_fields)

# The settings that are paths, unless they say `synthetic`; an encoder may also be a name (`run`, `random`, `vits16_k400`).
PATHS = re.compile(r"run\.results|data\.(source|annotations|root|shards)|checkpoint\.model|(davis|jhmdb|vip)\.root")
ENCODERS = re.compile(r"pretrain\.encoder\.init|checkpoint\.encoders\..+")

REMOVED = {  # settings of earlier versions, and why they went
    "activation_checkpointing": "a larger pretrain.loop.accumulate saves more memory",
    "centring": "targets are centred by their running mean, as in the paper",
    "direct": "videos are always prepared first",
    "fps": "data.num_frames says how many frames are kept, and the three of a sample follow from shares of a video's length",
    "init_scheme": "fresh weights start as DINOv2's",
    "jpeg_quality": "kept frames have quality 95",
    "koleo_scope": "KoLeo looks for neighbours among a rank's samples",
    "long_memory": "frame 0 always votes besides",
    **dict.fromkeys(("ratio_end", "share_end"), "masks are the same in every step, as in the paper"),
    "real_points": "real clips are scored at every point",
    "save_predictions": "predictions are always kept, the notebooks show clips from them",
    "separate_patch_head": "patches and CLS tokens share one head, as in the paper",
    "threads": "OMP_NUM_THREADS says how many threads torch takes",
    "tensorboard": "pretrain.loop.tracker: tensorboard says it",
    "upsampling": "joints are scored on the grid: nothing is upsampled",
}


# --- places -----------------------------------------------------------------------------------------------------------


def project_root() -> Path:
    """The nearest folder upwards with `notebooks/` and `params/`, else the one this library lies in, else the working folder."""
    here = Path.cwd()
    folders = (here, *here.parents, Path(__file__).parents[1])
    return next((place for place in folders if (place / "notebooks").is_dir() and (place / "params").is_dir()), here)


def resolve(path: str | Path) -> Path:
    """A path of `Params` as an absolute one."""
    return project_root() / Path(path).expanduser()


def _with_paths(value: Any, folder: Path, change: Callable[[str], str], name: str) -> Any:
    """A copy of a setting `section.key`, or of sections (name ""), with every path replaced; relative ones start at `folder`."""
    if isinstance(value, dict):
        return {key: _with_paths(below, folder, change, f"{name}.{key}".lstrip(".")) for key, below in value.items()}
    if not isinstance(value, str):
        return value
    is_path = PATHS.fullmatch(name) and value != "synthetic"
    if ENCODERS.fullmatch(name) and not value.startswith("timm:"):
        is_path = "/" in value or value.startswith("~") or os.path.exists(folder / value)
    return change(value) if is_path else value


def placed(value: Any, folder: Path, name: str = "") -> Any:
    """A setting, or sections, whose paths are relative to `folder`, as `Params` holds them."""
    root = project_root()

    def place(value: str) -> str:
        path = Path(os.path.normpath(folder.absolute() / os.path.expanduser(value)))
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    return _with_paths(value, folder, place, name)


# --- reading ----------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a few lines of them can stand for gigabytes) and without repeated keys."""

    def fetch_alias(self) -> None:
        raise yaml.YAMLError(f"line {self.line + 1} uses an alias (*name)")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {repeated[0]!r} stands twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as plain sections: not yet checked, its paths as they stand there."""
    with reading(path, "correct that place"):
        loaded = yaml.load(read_text(path), _Loader)  # noqa: S506 (a subclass of SafeLoader)
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise InputError(f"{path} holds no sections; it needs keys such as {', '.join(SECTIONS[:3])} at the top level.")
    return loaded


def read_profile(profile: str | Path, changes: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The sections of a profile, not yet checked, with paths as `Params` holds them, and what error messages call them.

    `profile` is a path, or `quick` for `<project>/params/quick.yaml`; `changes` are those of the command line's `--set`:
    `section.key=value`, the value as YAML. Outside a project, results and prepared data go beside the file by default.
    """
    path, shipped = Path(profile).expanduser(), project_root() / "params"
    if path.suffix not in (".yaml", ".yml"):
        path = shipped / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in shipped.glob("*.yaml"))
        raise InputError(f"There is no parameter file {path}; {known_names(path.stem, known)}")
    folder, origin = path.parent.absolute(), str(path)
    sections = placed(read_yaml(path), folder)
    if not folder.is_relative_to(project_root()):
        sections = merged({"run": {"results": f"{folder}/results"}, "data": {"root": f"{folder}/data/run"}}, sections)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or "." not in name:
            raise InputError(f"--set {change!r} is not possible; write section.key=value, such as run.seed=1.")
        origin += f" --set {_shown(change)}"
        with reading(f"--set {_shown(change)}", "write its value as YAML"):
            value = yaml.load(text, _Loader)  # noqa: S506 (a subclass of SafeLoader)
        for part in reversed(name.split(".")):
            value = {part: value}
        sections = merged(sections, placed(value, Path.cwd()), replaced=())
    return sections, origin


def load(profile: str | Path, changes: Sequence[str] = ()) -> Params:
    """A parameter file, read (see `read_profile`) and checked."""
    return checked(Params, *read_profile(profile, changes))


def parse(sections: dict[str, Any], origin: str) -> Params:
    """Sections, whose paths are as `Params` holds them, checked against the schema; see `checked`."""
    return checked(Params, sections, origin)


def checked(
    schema: type[S], content: dict[str, Any], origin: str, more: Callable[[S], Sequence[str]] = lambda _: ()
) -> S:
    """Plain values checked against a schema made of `Section`s; everything that is wrong is one `InputError`.

    `origin` is what the message begins with, such as the file's path; `more` finds further problems, a sentence each, in what is
    left without the wrong values.
    """
    content, wrong = copy.deepcopy(content), []
    for _ in range(5):  # without the wrong values, rules of whole sections are tried, which may be broken too
        try:
            found = schema.model_validate(content)
        except ValidationError as error:
            for item in sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden"):
                wrong.append(_sentence(item, schema))
                below: Any = content
                for part in item["loc"]:  # the innermost key of a mapping on the way to the wrong value goes
                    if isinstance(below, dict) and part in below:
                        place, key, below = below, part, below[part]
                if item["loc"]:
                    place.pop(key, None)
            continue
        wrong += more(found)
        if not wrong:
            return found
        break
    if len(wrong) == 1:
        raise InputError(f"{origin}: {wrong[0]}")
    raise InputError(f"{origin}: {len(wrong)} things are wrong:" + "".join(f"\n  - {line}" for line in wrong))


def merged(
    sections: Mapping[str, Any], changes: Mapping[str, Any], replaced: Sequence[str] = ("encoders", "paper_rows")
) -> dict[str, Any]:
    """Sections with those of `changes` laid over them; settings that are mappings themselves are `replaced`."""
    together = dict(sections)
    for key, value in changes.items():
        below = sections.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key not in replaced:
            value = merged(below, value, replaced)
        together[key] = value
    return together


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, `section.key` -> value; lists and empty mappings stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    start = f"{prefix}." if prefix else ""
    return {name: leaf for key, below in value.items() for name, leaf in dotted(below, f"{start}{key}").items()}


def init(target: Path) -> None:
    """Write a commented parameter file for data of your own, to be edited.

    Args:
        target: the new file, such as my.yaml.
    """
    if target.exists():
        raise InputError(f"{target} exists already; choose another name.")
    write_text(target, Path(__file__).with_name("template.yaml").read_text(encoding="utf-8"))
    print(f"{target}: edit the lines marked with <--, then: tcore reproduce {target}")


# --- notebooks --------------------------------------------------------------------------------------------------------


def from_notebook(namespace: Mapping[str, Any]) -> Params:
    """The parameters of a running notebook, from its global names: only those of sections and `profile` are looked at.

    papermill with a whole file (`-f`; it gives `run.name` and other sections) means that file. Else what is given, in the cell or
    by `-p profile small_scale -y "data: {num_frames: 5}"`, is laid over the profile. A notebook is not told where a file lies:
    relative paths are taken as in the project's `params/`. A name that is no section, of which papermill only warns, is refused.
    """
    injected_cell = next((cell for cell in reversed(namespace.get("In", ())) if cell.startswith("# Parameters\n")), "")
    names = re.findall(r"^(\w+) = ", injected_cell, re.MULTILINE)
    for name in names:
        if name not in SECTIONS and name != "profile":
            holders = [key for key, section in Params().__dict__.items() if name in type(section).model_fields]
            hint = f'write -y "{holders[0]}: {{{name}: ...}}".' if holders else known_names(name, SECTIONS)
            raise InputError(f"The parameter {name!r} is no section of a parameter file; {hint}")
    given = {name: namespace[name] for name in SECTIONS if namespace.get(name) is not None}
    given, profile = placed(given, project_root() / "params"), namespace.get("profile") or "quick"
    run = given.get("run")
    if len(given) > 1 and "profile" not in names and "run" in names and isinstance(run, dict) and "name" in run:
        return parse(given, "the notebook's parameters")
    sections, origin = read_profile(profile)
    if given:
        print(f"parameters: {profile}, but {', '.join(f'{key} = {value!r}' for key, value in dotted(given).items())}")
        origin += " with the notebook's parameters"
    return parse(merged(sections, given), origin)


def injected(params: Params) -> dict[str, Any]:
    """What papermill is given for `from_notebook`: every section, with the settings that the profile states."""
    stated = {name: {} for name in SECTIONS} | params.model_dump(mode="json", exclude_unset=True)
    stated["run"]["name"] = params.run.name
    return _with_paths(stated, project_root(), lambda path: str(resolve(path)), "")


def _shown(text: str) -> str:
    """Somebody's text in a sentence: on one line, not too long."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _sentence(item: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """One entry of a pydantic report with key, value and remedy."""
    key = ".".join(_shown(str(part)) for part in item["loc"]) or "the file"
    value = _shown(repr(item["input"]))
    if item["type"] == "extra_forbidden":
        *above, last = item["loc"]
        if last in REMOVED:
            return f"the key {key} (value {value}) was removed, because {REMOVED[last]}; delete that line."
        here: Any = schema
        for part in above:  # a field of a section, or an item of dict[..., item] or list[item]
            here = here.model_fields[part].annotation if hasattr(here, "model_fields") else get_args(here)[-1]
        return f"the key {key} (value {value}) does not exist; {known_names(str(last), here.model_fields)}"
    if item["type"] == "float_type" and isinstance(item["input"], str):
        return f"{key} is the text {value}, not a number; YAML wants a dot and a sign, like 1.0e-4."
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"{key} = {value} is not possible: {message}."
