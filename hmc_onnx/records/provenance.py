"""Where a compressed file comes from: kept in the file itself, as entries of its `metadata_props`.

The entries depend on the model, the data and the settings alone, and not on the day or the machine's name, so that the
same run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

import onnx
from pydantic import Field, ValidationError, field_validator

from calib.runtime.providers import known_provider, parse_options, short_name
from hmc_onnx.records.plan import Plan
from passes.core.errors import ModelError, SettingsError
from passes.core.records import Frozen

__all__ = ["PREFIX", "Provenance", "with_provenance"]

PREFIX = "hmc_onnx."


class Provenance(Frozen):
    """What was done to a model, and by which plan. A field that is not None is the entry `hmc_onnx.FIELD` of the file.

    Attributes:
        version: of hmc-onnx.
        original: digest (`passes.graph.model.digest`) of the original model.
        target: share of the original's time, MACs and parameters that the plan was made for, such as "macs=0.5".
        precision: "fp32", "fp16" or "int8".
        strategy: that chose among the candidates, such as "hmc".
        plan: SHA-256 of the plan.
        batch: images a run that the plan was made for; None where neither the settings nor a measured time says it.
        provider: short name of an execution provider, which may be given in full, or "auto"; that of the measured time,
            where there is one.
        provider_option: options of that provider, "KEY=VALUE" each; in the file a list in JSON.
        threads: of onnxruntime; 0 where neither the settings nor a measured time says it.
        finetuned: version of hmc-onnx that fine-tuned the model; None where it was not fine-tuned.
        teacher: digest of the model that it was fine-tuned against.
    """

    version: str
    original: str
    target: str
    precision: str
    strategy: str
    plan: str
    batch: int | None = Field(default=None, ge=1)
    provider: str = "auto"
    provider_option: tuple[str, ...] = ()
    threads: int = Field(default=0, ge=0)
    finetuned: str | None = None
    teacher: str | None = None

    @field_validator("provider")
    @classmethod
    def _in_short(cls, name: str) -> str:
        try:
            return short_name(known_provider(name))
        except SettingsError:  # of an onnxruntime that has others than the installed one
            return short_name(name)

    @field_validator("provider_option", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except RecursionError as e:
            raise ValueError("nested too deeply") from e

    @field_validator("provider_option")
    @classmethod
    def _of_keys_and_values(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_options(options)
        except SettingsError as e:
            raise ValueError(str(e)) from e
        return options

    @classmethod
    def of_plan(cls, plan: Plan, original: str, batch: int | None) -> Provenance:
        """The provenance of a model on which a plan was carried out, in float32.

        Args:
            plan: that was carried out.
            original: digest of the original model.
            batch: the number of images that the original declares, where it does.
        """
        planned = plan.latency
        return cls(
            version=version("hmc-onnx"),
            original=original,
            target=str(plan.target),
            precision="fp32",
            strategy=plan.strategy,
            plan=hashlib.sha256(plan.model_dump_json().encode()).hexdigest(),
            batch=planned.batch if planned else plan.settings.batch or batch,
            provider=planned.machine.provider if planned else plan.settings.provider,
            provider_option=plan.settings.provider_option,
            threads=planned.machine.threads if planned else plan.settings.threads,
        )

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> Provenance | None:
        """What a model says of itself; None where it says nothing.

        Raises:
            ModelError: its entries have been changed to what cannot be.
        """
        found = {p.key.removeprefix(PREFIX): p.value for p in proto.metadata_props if p.key.startswith(PREFIX)}
        known = {name: value for name, value in found.items() if name in cls.model_fields}  # a later version may add
        if not known:
            return None
        try:
            return cls.model_validate(known)
        except ValidationError as e:
            name = f"{PREFIX}{e.errors()[0]['loc'][0]}"
            raise ModelError(
                f"the model's metadata entry '{name}' is missing or not valid: delete the entries that begin with "
                f"'{PREFIX}', or compress the model again"
            ) from e

    def rows(self) -> dict[str, str]:
        """What it says, for people."""
        said = {
            "made by": f"hmc-onnx {self.version}",
            "original": self.original,
            "plan": self.plan,
            "target": self.target,
            "strategy": self.strategy,
            "precision": self.precision,
            "planned for": f"batch {self.batch or 'not said'}, "
            f"provider {' '.join([self.provider, *self.provider_option])}, "
            f"threads {self.threads or 'not said'}",
        }
        if self.finetuned is not None:
            said["fine-tuned by"] = f"hmc-onnx {self.finetuned}"
            said["teacher"] = self.teacher or ""
        return said


def with_provenance(proto: onnx.ModelProto, provenance: Provenance | None) -> onnx.ModelProto:
    """A copy of a model that has this provenance in place of the one it had; None: that has none.

    All other metadata stay as they are, and in their order.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    others = [p for p in proto.metadata_props if not p.key.startswith(PREFIX)]
    del copy.metadata_props[:]
    copy.metadata_props.extend(others)
    if provenance is not None:
        for name, value in provenance:
            if value not in (None, ()):
                text = json.dumps(value) if isinstance(value, tuple) else str(value)
                copy.metadata_props.add(key=PREFIX + name, value=text)
    return copy
