"""The stages, in their order, and what each of them is. What it reads and writes its module says.

The words, what tells a stage's instances apart, whether it runs models and in how many processes,
and what that asks of whoever starts it stand here and nowhere else. Costs nothing to import.
"""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVE = ("objective",)
VARIANT = (*OBJECTIVE, "variant")
BUDGET = (*VARIANT, "kl_nats", "seed")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        word: its name everywhere: module, DVC stage, command line, Prefect task, MLflow run.
        names: what tells its instances apart, in the order of their spelling; none: there is one.
        models: it runs models: on a GPU where there is one.
        alone: in one process, whatever run.processes says.
        light: it imports so little that it need not wait for a process that has imported more.
        compares: a stage of `infalign compare`; `infalign run` knows nothing of it.
    """

    word: str
    names: tuple[str, ...] = ()
    models: bool = False
    alone: bool = False
    light: bool = False
    compares: bool = False

    @property
    def several(self) -> bool:
        """Whether it may run in several processes."""
        return self.models and not self.alone

    def instance(self, *names: str) -> str:
        """`align@helpful-ctrl` from its parts, the same spelling as DVC's."""
        return self.word + ("@" + "-".join(names) if names else "")


STAGES = {
    stage.word: stage
    for stage in (
        Stage("corpus", light=True),
        Stage("sources", light=True),
        Stage("prepare"),
        Stage("sft", models=True),
        Stage("sample", models=True),  # what most of the others wait for begins first
        Stage("reward", OBJECTIVE, models=True),
        Stage("calibrate", OBJECTIVE, models=True),
        Stage("align", VARIANT, models=True),
        Stage("evaluate", OBJECTIVE, models=True),
        Stage("report"),
        # There are many contenders to run side by side: each takes one process.
        Stage("contend", BUDGET, models=True, alone=True, compares=True),
        Stage("poison", OBJECTIVE, models=True, alone=True, compares=True),
        Stage("hack", BUDGET, models=True, alone=True, compares=True),
        Stage("compare", OBJECTIVE, compares=True),
    )
}


def stage_of(instance: str) -> Stage:
    """The stage of an instance such as `align@helpful-ctrl`."""
    return STAGES[instance.split("@")[0]]
