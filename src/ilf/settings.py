"""Every setting with its type and default. The files under conf/ fill these in; cli/config.py checks them.

The settings are plain dataclasses of the standard library: Hydra validates values against their types, and all code
below cli/ takes them as ordinary arguments. A field of type `Component` is a class or function that an option names
by `_target_`.
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

# Keys and groups that don't change results: what else a run does, where it writes, and what it computes on.
NO_EFFECT = (
    *("mode", "stages", "measure", "store", "extras", "logger", "group", "output_dir"),
    *("pretrain", "annotate", "compare", "export", "run"),
    *("llm.url", "llm.parallel", "sampler.url", "executor.workers", "executor.address", "trainer.devices"),
)
STAGES = ("sample", "zero_shot", "annotate", "train_refiner", "refine", "train_policy", "evaluate", "report")


# Classes and functions from other libraries or from the user. `_target_` may name any that fits the kind required here.
OptimizerComponent = Annotated[Component, Needs("torch.optim.Optimizer", positional=1, given=("lr",))]
# Arguments of schedulers that take the number of optimizer steps
STEPS = ("num_training_steps", "total_steps", "T_max")
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
    """The policy, which is also the base model of the refiner."""

    name: str = "???"  # Name of the model in the results
    path: str | None = None  # Folder of the model, in Hugging Face format
    hub: str | None = None  # Name of the model on the Hugging Face Hub; used if model.path is null
    revision: str | None = None  # Commit of the model on the Hub; null for the newest
    # Data type of the weights during sampling: float32 | bfloat16 | auto. auto uses bfloat16, where it is faster,
    # for programs that only become training data; float32 for fine-tuned models and all reported programs.
    dtype: str = "auto"
    bos: bool | None = None  # Whether texts begin with the BOS token; null for the default of the model's tokenizer
    # Attention implementation of transformers: auto (transformers chooses) | eager | sdpa | flash_attention_2
    attention: str = "auto"


@dataclass
class Phase:
    """The settings of one fine-tuning, of the refiner or of the policy."""

    lr: float = 5e-6  # Peak learning rate
    epochs: int = 2  # Passes over the training set
    batch_size: int = 32  # Examples per optimizer step


@dataclass
class Training:
    """The settings that both fine-tunings share. lr, epochs and batch_size are defaults for `refiner` and `policy`."""

    lr: float | None = 5e-6  # Peak learning rate; null if the model's file sets one for each of the two fine-tunings
    epochs: int | None = 2  # Passes over the training set
    batch_size: int | None = 32  # Examples per optimizer step
    micro_batch_size: int = 1  # Maximum examples per forward pass; batch_size is split by length into such passes
    max_length: int = 1024  # Maximum tokens of prompt, target and EOS together; a longer row is rejected and reported
    # Recompute activations in the backward pass: uses less memory and takes more time
    gradient_checkpointing: bool = False
    compile: bool = False  # Whether to compile the forward pass of training with torch.compile
    # Quantization of the frozen base model under an adapter: nf4 (4 bits) | int8; null for none
    quantize: str | None = None
    validate_n: int = 1  # Programs to sample per validation task after each epoch; 0 for no such validation
    refiner: Phase = field(default_factory=Phase)
    policy: Phase = field(default_factory=Phase)


@dataclass
class Save:
    """How fine-tuned models are saved to `policy/` and `refiner/`."""

    # Data type of the saved weights: float32 | bfloat16 | float16 | base, which is the type in the base's config.json
    dtype: str = "float32"


@dataclass
class Evaluate:
    """Which metrics are reported, and how the programs for them are sampled."""

    k: list[int] = field(default_factory=lambda: [1, 10])  # The values of k for which pass@k is reported
    n: int | None = None  # Programs per task in reported stages; null for sampler.n
    # Sampling temperature of reported programs, 0 for greedy decoding; null for sampler.temperature
    temperature: float | None = None
    top_k: int | None = None  # Value of top_k for reported programs; null for sampler.top_k
    # Turns of feedback at test time. In each turn, programs that fail are rewritten with feedback. As a control, as
    # many are resampled without feedback.
    turns: int = 0
    # Source of the feedback at test time: unit_tests, llm, scripted, or a mapping with `_target_`
    feedback: Any = "unit_tests"
    reviser: str = "policy"  # The model that rewrites programs with feedback at test time: policy | refiner


@dataclass
class Extras:
    """Additional output of the command."""

    print_config: bool = False  # Print all settings at the start of a run


@dataclass
class StoreSettings:
    """Where the results of finished stages are stored, and when they are reused."""

    dir: str = ".ilf"  # Folder of the store
    reuse: bool = True  # False: remove the stored result of each requested stage and compute it again
    # True: reuse results that another version of the code wrote. Set this only if the edit changes no result.
    ignore_code_changes: bool = False
    prune_days: float | None = None  # With mode=store: remove entries that were not used for this many days


@dataclass
class Pretraining:
    """Pretraining of the mini model from scratch, with mode=pretrain."""

    folder: str = "${output_dir}/mini"  # Folder to which the model is written
    vocabulary: int = 1280  # Tokens in the vocabulary
    hidden: int = 192  # Hidden size
    intermediate: int = 384  # Size of the MLP's hidden layer
    layers: int = 5  # Transformer blocks
    heads: int = 4  # Attention heads
    key_value_heads: int = 2  # Key and value heads (grouped-query attention)
    lr: float = 2e-3  # Peak learning rate
    batch_size: int = 16  # Documents per step
    epochs: int = 24  # Epochs of 100 steps each, every one on new documents


@dataclass
class Annotate:
    """The web page on which people write feedback, with mode=annotate."""

    path: str = "annotations.jsonl"  # File of the answers; existing answers are preserved and shown
    host: str = "127.0.0.1"  # Address on which the server listens; 127.0.0.1 accepts connections from this machine only
    port: int = 8765  # Port of the server


@dataclass
class Compare:
    """The comparison at the end of a sweep, or the one that mode=compare makes."""

    folders: list[str] = field(default_factory=list)  # With mode=compare: folders of the sweeps or runs to compare
    # Comparisons planned before the results are known, each as [arm, against] with the names in the comparison table
    pairs: list[Any] = field(default_factory=list)


@dataclass
class Settings:
    """The settings of one run."""

    mode: str = "run"  # What the command does: run | annotate | store | pretrain | compare | checks | export
    seed: int = 0  # Random seed of the run
    arm: str = ""  # Name of the arm in the results; empty for the name of the chosen option of `refinements`
    stages: list[str] = field(default_factory=lambda: list(STAGES))  # The stages to run
    # A task fails if all of its samples are incorrect (all, as in the paper) or if at least one is (any)
    failing: str = "all"
    rounds: int = 1  # How often to run the algorithm, each time with samples of and feedback on the newest policy
    # Start of the fine-tuning in each round. base: the base model, trained on the examples of all rounds | last: the
    # previous round's policy, trained on the new examples
    rounds_from: str = "base"
    # The data set
    data: Annotated[Data, Needs()] = field(default_factory=Component("ilf.tasks.Mini"))
    # A second data set for evaluation only, chosen by data@transfer=OPTION
    transfer: Annotated[Data | None, Needs()] = None
    model: Model = field(default_factory=Model)
    # The feedback source for the training set
    feedback: Annotated[Source, Needs()] = field(default_factory=Component("ilf.feedback.UnitTests"))
    # The refiner, which fixes incorrect programs by feedback
    refiner: Annotated[Refiner, Needs()] = field(default_factory=Component("ilf.refiners.FineTuned"))
    # The arm, which chooses the policy's training set
    refinements: Annotated[Refinements, Needs()] = field(default_factory=Component("ilf.refinements.Model"))
    llm: LLM = field(default_factory=LLM)
    # The sampler of programs
    sampler: Annotated[Sampler, Needs()] = field(default_factory=Component("ilf.sampling.HFSampler"))
    # The executor of programs and their tests
    executor: Annotated[Executor, Needs()] = field(default_factory=LocalExecutor)
    adapter: AdapterComponent = None  # The PEFT adapter of both fine-tunings; null for full fine-tuning
    # The optimizer of both fine-tunings
    optimizer: OptimizerComponent = field(default_factory=lambda: Component("torch.optim.AdamW"))
    # The training objective of the policy
    objective: Annotated[Objective, Needs()] = field(default_factory=Component("ilf.training.objectives.SFT"))
    module: Annotated[Modules, Needs()] = field(default_factory=Modules)
    # The Lightning data module
    datamodule: DatamoduleComponent = field(default_factory=lambda: Component("ilf.training.MBPPDataModule"))
    # The learning-rate schedule of both fine-tunings
    scheduler: SchedulerComponent = field(default_factory=lambda: Component("ilf.training.schedules.linear"))
    training: Training = field(default_factory=Training)
    # The Lightning Trainer
    trainer: TrainerComponent = field(default_factory=lambda: Component("pytorch_lightning.Trainer"))
    callbacks: dict[str, CallbackComponent] = field(default_factory=dict)  # The Lightning callbacks, by name
    # What to do if a run needs more memory than its device has, or more disk space than is free: refuse | warn
    memory: str = "refuse"
    save: Save = field(default_factory=Save)
    evaluate: Evaluate = field(default_factory=Evaluate)
    # Measurements with the models: weight_change (of the policy), kl (of the fine-tuned policy from the base) and
    # perplexity (of each arm's programs under the base); src/ilf/measurements.py defines them
    measure: list[str] = field(default_factory=lambda: ["weight_change", "kl"])
    # If above 0, a sweep selects settings by this many programs per Refine task, and only the best settings are
    # evaluated on Test, once
    select: int = 0
    # Minimum programs on Refine in total for a selection; with fewer it is refused, because chance would decide it
    select_min_programs: int = 400
    # The Lightning loggers, by name
    logger: Annotated[dict[str, LoggerComponent], Needs(beside=("mode",))] = field(default_factory=dict)
    store: StoreSettings = field(default_factory=StoreSettings)
    extras: Extras = field(default_factory=Extras)
    pretrain: Pretraining = field(default_factory=Pretraining)
    annotate: Annotate = field(default_factory=Annotate)
    study: str | None = None  # Name of the study; set by the files under conf/experiment
    # The function that makes the table and figure of your own study, as package.module.function
    study_table: str | None = None
    compare: Compare = field(default_factory=Compare)
    run: str | None = None  # With mode=export: folder of the run whose pairs of programs are exported
    # With mode=export: a new folder for the pairs of programs of `run`; if `run` is null, a .jsonl or .csv file for the
    # annotations in feedback.path
    export: str | None = None
    output_dir: str = "???"  # Folder of the run
    group: str | None = None  # Group of the run in Weights & Biases: the study or sweep
    overrides: list[str] = field(default_factory=list)  # The overrides on the command line; filled in by the command
    chosen: dict[str, str] = field(default_factory=dict)  # The chosen option of each group; filled in by the command
    # All settings as plain values, with the `_target_` of each component; filled in by the command
    config: dict[str, Any] = field(default_factory=dict)

    def option(self, group: str) -> str:
        """Return the chosen option of a group, or the name of its class if no option is known.

        The same applies to feedback=annotator, which stands for the annotator of the data.

        Args:
            group: Such as "data" or "data@transfer".
        """
        part, chosen = getattr(self, group.rpartition("@")[2]), self.chosen.get(group, "annotator")
        return str(getattr(part, "name", type(part).__name__.lower())) if chosen == "annotator" else chosen

    @property
    def chat(self) -> bool:
        """Whether prompts use the model's chat template."""
        return self.data.prompt == "chat"

    @property
    def evaluation(self) -> Sampler:
        """The sampler of reported programs: the policy's on Test, before and after fine-tuning."""
        own = {name: getattr(self.evaluate, name) for name in ("n", "temperature", "top_k")}
        return replace(self.sampler, **{name: value for name, value in own.items() if value is not None})

    @property
    def needs_feedback(self) -> bool:
        """Whether the arm trains on tasks with feedback. Expert iteration and an untrained policy need none."""
        return self.refinements.trains and not self.refinements.unmatched

    @property
    def refines(self) -> bool:
        """Whether the arm needs a refiner, either for its programs or to match the tasks of other arms."""
        arm = self.refinements
        return self.needs_feedback and (arm.refines or arm.tasks == "solved")

    @property
    def trains_refiner(self) -> bool:
        """Whether the requested stages include fine-tuning the refiner."""
        return self.refines and self.refiner.trains and "train_refiner" in self.stages

    @property
    def writers(self) -> list[Source]:
        """All feedback sources: for training, and at test time."""
        return [*self.feedback.writers, *self.writers_at_test_time]

    @property
    def writers_at_test_time(self) -> list[Source]:
        """The feedback sources at test time."""
        return named(self.evaluate.feedback, "evaluate.feedback").writers if self.evaluate.turns else []


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of a setting, given its key such as "sampler.n"."""
    return functools.reduce(getattr, key.split("."), settings)
