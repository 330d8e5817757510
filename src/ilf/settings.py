"""Every setting, typed. The files under conf/ fill these in; cli/config.py checks them.

Plain dataclasses of the standard library: Hydra validates types against them, and everything below cli/ takes them as
ordinary arguments. A field whose type is `Component` is a class or function that an option names by `_target_`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from ilf.components import Component, Needs
from ilf.executors import Executor, LocalExecutor
from ilf.feedback.composed import named
from ilf.feedback.llm_settings import LLM
from ilf.feedback.source import Source
from ilf.protocols import Objective, Refiner, Sampler
from ilf.refinements import Refinements
from ilf.tasks.data import Data

STAGES = ("sample", "zero_shot", "annotate", "train_refiner", "refine", "train_policy", "evaluate", "report")


# Classes and functions of other libraries, or of a user: any that a part's kind allows, by `_target_`.
OptimizerComponent = Annotated[Component, Needs("torch.optim.Optimizer", positional=1, given=("lr",))]
STEPS = ("num_training_steps", "total_steps", "T_max")  # what schedulers call the optimizer steps of a training
_SCHEDULER = "torch.optim.lr_scheduler.LRScheduler"
SchedulerComponent = Annotated[Component | None, Needs(_SCHEDULER, positional=1, offered=STEPS)]
AdapterComponent = Annotated[Component | None, Needs("peft.PeftConfig")]
CallbackComponent = Annotated[Component, Needs("pytorch_lightning.Callback")]
LoggerComponent = Annotated[Component, Needs("pytorch_lightning.loggers.Logger")]
_OF_A_RUN = ("callbacks", "logger", "plugins", "num_nodes", "use_distributed_sampler", "default_root_dir")
_OF_A_FIT = ("enable_checkpointing", "reload_dataloaders_every_n_epochs")
_MODULE = ("model", "tokenizer", "sampler", "optimizer", "scheduler", "objective", "seed")
ModuleComponent = Annotated[Component, Needs("ilf.training.fine_tuning.FineTuningModule", given=_MODULE)]
DatamoduleComponent = Annotated[Component, Needs(given=("tokenizer", "contents", "batch_size", "seed"))]
TrainerComponent = Annotated[Component, Needs("pytorch_lightning.Trainer", given=(*_OF_A_RUN, *_OF_A_FIT))]


@dataclass
class Modules:
    """The Lightning modules of the two fine-tunings."""

    refiner: ModuleComponent = field(default_factory=lambda: Component("ilf.training.RefineModule"))
    policy: ModuleComponent = field(default_factory=lambda: Component("ilf.training.ILFModule"))


@dataclass
class Model:
    """The policy, and the refiner's base."""

    name: str = "???"
    path: str | None = None  # a folder in Hugging Face's layout
    hub: str | None = None  # a model's name on the Hub, used where path is null
    revision: str | None = None  # commit on the Hub; null is the newest
    # Of the weights while sampling: float32 | bfloat16 | auto: bfloat16, where the device computes in it, for programs
    # that are only learned from, float32 for fine-tuned models and the programs of the figures.
    dtype: str = "auto"
    bos: bool | None = None  # whether texts begin with the BOS token; null does as the model's tokenizer does
    attention: str = "auto"  # transformers' implementation: auto (its own choice) | eager | sdpa | flash_attention_2


@dataclass
class Phase:
    """Settings of one fine-tuning: the refiner's, or the policy's."""

    lr: float = 5e-6  # peak learning rate
    epochs: int = 2
    batch_size: int = 32  # examples an optimizer step


@dataclass
class Training:
    """Settings that both fine-tunings share; the first three are the defaults of `refiner` and `policy`."""

    lr: float | None = 5e-6  # null where the model's file has one for each
    epochs: int | None = 2
    batch_size: int | None = 32
    micro_batch_size: int = 1  # examples a forward pass, at most; batch_size is cut by length into such passes
    max_length: int = 1024  # tokens of prompt, target and EOS; a longer row is rejected and named
    gradient_checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time
    compile: bool = False  # the training forward pass, by torch.compile
    quantize: str | None = None  # how the frozen base's weights are kept under an adapter: nf4 (4 bits) | int8
    validate_n: int = 1  # programs a validation task after each epoch; 0 for none
    refiner: Phase = field(default_factory=Phase)
    policy: Phase = field(default_factory=Phase)


@dataclass
class Save:
    """How fine-tuned models are kept, `policy/` and `refiner/`."""

    dtype: str = "float32"  # of their weights: float32 | base: as the base's config.json says | bfloat16 | float16


@dataclass
class Evaluate:
    """What is reported of a set of programs."""

    k: list[int] = field(default_factory=lambda: [1, 10])
    n: int | None = None  # programs a task that is reported on; null: sampler.n
    temperature: float | None = None  # of these, 0 for the most likely tokens; null: sampler.temperature
    top_k: int | None = None  # of these; null: sampler.top_k
    turns: int = 0  # of feedback at test time, after which what fails is written anew, beside as many fresh draws
    feedback: Any = "unit_tests"  # whose words these are: unit_tests, llm, scripted, or a mapping with `_target_`
    reviser: str = "policy"  # who writes anew: the policy | the refiner


@dataclass
class Extras:
    """What the command shows besides."""

    print_config: bool = False  # all settings, at the start of a run


@dataclass
class StoreSettings:
    """Where finished stages are kept."""

    dir: str = ".ilf"
    reuse: bool = True
    ignore_code_changes: bool = False  # true: what other code has made is taken; you say that the edit changes nothing
    prune_days: float | None = None  # with mode=store: remove what was not used for so many days


@dataclass
class Pretraining:
    """The mini model from scratch, by mode=pretrain."""

    folder: str = "${output_dir}/mini"  # where the model is written
    vocabulary: int = 1280
    hidden: int = 192
    intermediate: int = 384
    layers: int = 5
    heads: int = 4
    key_value_heads: int = 2
    lr: float = 2e-3  # peak learning rate
    batch_size: int = 16  # documents a step
    epochs: int = 24  # of 100 steps, on new documents each


@dataclass
class Annotate:
    """The page on which people write feedback, by mode=annotate."""

    path: str = "annotations.jsonl"  # the answers; what is there already is kept and shown
    host: str = "127.0.0.1"  # whom the server listens to: this machine
    port: int = 8765


@dataclass
class Compare:
    """The comparison at the end of a sweep, and that of mode=compare."""

    folders: list[str] = field(default_factory=list)  # with mode=compare: folders of sweeps or runs
    pairs: list[Any] = field(
        default_factory=list
    )  # planned before the results: [arm, against], as the table calls them


@dataclass
class Settings:
    """One run."""

    mode: str = "run"  # run | annotate | store | pretrain | compare | checks | export
    seed: int = 0
    arm: str = ""  # empty: the option of refinements
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    failing: str = "all"  # all: a task fails where all of its samples are wrong, as in the paper | any: where one is
    rounds: int = 1  # of the algorithm, each with samples and feedback of the newest policy
    rounds_from: str = "base"  # what each round fine-tunes: base, on all rounds' examples | last, on the new ones
    data: Annotated[Data, Needs()] = field(default_factory=Component("ilf.tasks.Mini"))
    transfer: Annotated[Data | None, Needs()] = None  # another data set to evaluate on, by data@transfer=...
    model: Model = field(default_factory=Model)
    feedback: Annotated[Source, Needs()] = field(default_factory=Component("ilf.feedback.UnitTests"))
    refiner: Annotated[Refiner, Needs()] = field(default_factory=Component("ilf.refiners.FineTuned"))
    refinements: Annotated[Refinements, Needs()] = field(default_factory=Component("ilf.refinements.Model"))
    llm: LLM = field(default_factory=LLM)
    sampler: Annotated[Sampler, Needs()] = field(default_factory=Component("ilf.sampling.HFSampler"))
    executor: Annotated[Executor, Needs()] = field(default_factory=LocalExecutor)
    adapter: AdapterComponent = None
    optimizer: OptimizerComponent = field(default_factory=lambda: Component("torch.optim.AdamW"))
    objective: Annotated[Objective, Needs()] = field(default_factory=Component("ilf.training.objectives.SFT"))
    module: Annotated[Modules, Needs()] = field(default_factory=Modules)
    datamodule: DatamoduleComponent = field(default_factory=lambda: Component("ilf.training.MBPPDataModule"))
    scheduler: SchedulerComponent = field(default_factory=lambda: Component("ilf.training.schedules.linear"))
    training: Training = field(default_factory=Training)
    trainer: TrainerComponent = field(default_factory=lambda: Component("pytorch_lightning.Trainer"))
    callbacks: dict[str, CallbackComponent] = field(default_factory=dict)
    memory: str = "refuse"  # where a run needs more memory than its device has, or disk than is free: refuse | warn
    save: Save = field(default_factory=Save)
    evaluate: Evaluate = field(default_factory=Evaluate)
    measure: list[str] = field(default_factory=lambda: ["weight_change", "kl"])  # and perplexity; see measures.py
    select: int = 0  # above 0: a sweep judges settings by so many programs a Refine task, and the best see Test once
    select_min_programs: int = 400  # programs on Refine, in all, below which a selection is refused as chance
    logger: Annotated[dict[str, LoggerComponent], Needs(beside=("mode",))] = field(default_factory=dict)
    store: StoreSettings = field(default_factory=StoreSettings)
    extras: Extras = field(default_factory=Extras)
    pretrain: Pretraining = field(default_factory=Pretraining)
    annotate: Annotate = field(default_factory=Annotate)
    study: str | None = None  # its name, set by the files under conf/experiment
    study_table: str | None = None  # package.module.function that makes the table and figure of a study of one's own
    compare: Compare = field(default_factory=Compare)
    run: str | None = None  # with mode=export: the folder of a run, whose pairs of programs are written
    # With mode=export: a new folder for these; without `run`, a .jsonl or .csv file for feedback.path's annotations.
    export: str | None = None
    output_dir: str = "???"
    group: str | None = None  # of W&B: the study or sweep
    overrides: list[str] = field(default_factory=list)  # what the command line said
    chosen: dict[str, str] = field(default_factory=dict)  # the option of each group
    config: dict[str, Any] = field(default_factory=dict)  # all of this as plain values, with each part's `_target_`

    def option(self, group: str) -> str:
        """Return the option that was chosen of a group; where none is known of, what its class is called.

        So too for feedback=annotator, which is whoever annotates the data.

        Args:
            group: Such as "data" or "data@transfer".
        """
        part, chosen = getattr(self, group.rpartition("@")[2]), self.chosen.get(group, "annotator")
        return str(getattr(part, "name", type(part).__name__.lower())) if chosen == "annotator" else chosen

    @property
    def chat(self) -> bool:
        """Whether models are asked in the turns of their chat template."""
        return self.data.prompt == "chat"

    @property
    def evaluation(self) -> Sampler:
        """The sampler of what is reported: of the policy's programs on Test, before and after fine-tuning."""
        own = {name: getattr(self.evaluate, name) for name in ("n", "temperature", "top_k")}
        return replace(self.sampler, **{name: value for name, value in own.items() if value is not None})

    @property
    def refines(self) -> bool:
        """Whether the arm has a refiner, for its own programs or to match the tasks of others."""
        arm = self.refinements
        return arm.trains and not arm.unmatched and (arm.refines or arm.tasks == "solved")

    @property
    def trains_refiner(self) -> bool:
        """Whether the requested stages hold the refiner's fine-tuning."""
        return self.refines and self.refiner.trains and "train_refiner" in self.stages

    @property
    def writers(self) -> list[Source]:
        """Those who write feedback: to train on, and at test time."""
        turning = named(self.evaluate.feedback, "evaluate.feedback").writers if self.evaluate.turns else []
        return [*self.feedback.writers, *turning]


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of a key such as "sampler.n"."""
    return functools.reduce(getattr, key.split("."), settings)
