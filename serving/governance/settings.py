"""The parts of the configuration file about governance, and what only people know of a model or a deployment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serving.config_section import Section


class TrustedKey(Section):
    """Whose approvals count, and in which roles; `key` is a line that `canarium key show` prints."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    key: Annotated[str, Field(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]
    roles: Annotated[tuple[str, ...], Field(min_length=1)] = ("approver",)


class GovernanceConfig(Section):
    """Whether only approved artifacts are served, under which policy, and whose approvals count."""

    mode: Literal["off", "warn", "enforce"] = "off"
    policy: str = "low"
    trusted_keys: tuple[TrustedKey, ...] = ()

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> GovernanceConfig:
        if self.mode != "off" and not self.trusted_keys:
            raise ValueError(f"trusted_keys: mode {self.mode!r} needs the public key of at least one approver")
        for field in ("name", "key"):
            values = [getattr(key, field) for key in self.trusted_keys]
            if len(set(values)) != len(values):
                raise ValueError(f"trusted_keys: each {field} may occur once")
        return self


class CardConfig(Section):
    """What only people know of a model, for its card."""

    owner: str = ""
    contact: str = ""
    purpose: str = ""
    intended_use: str = ""
    limitations: tuple[str, ...] = ()


class SystemCardConfig(CardConfig):
    """Likewise of the whole deployment, and what it is called."""

    name: str = ""
