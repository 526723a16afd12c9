"""Every setting is written down, and nothing is written down that is none."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from syncnorm.service.settings import Settings
from tests.helpers.paths import ROOT

README = ROOT / "docs" / "reference" / "settings.md"


class Asked(dict[str, str]):
    """An environment that notes what is looked up in it."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.names.add(key)
        return super().get(key, default)


def test_readme_lists_every_setting_that_is_read() -> None:
    asked = Asked({})
    Settings.from_environment(asked)
    section = README.read_text().partition("# Settings")[2].partition("Clients read")[0]
    first_cells = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))

    assert set(re.findall(r"`(SYNCNORM_\w+)`", first_cells)) == asked.names


def test_links_lead_to_the_public_address() -> None:
    settings = Settings.from_environment({"SYNCNORM_PUBLIC_URL": "https://norm.example.org/"})

    assert settings.public_url == "https://norm.example.org"


@pytest.mark.parametrize(
    ("name", "value"), [("SYNCNORM_PORT", "0"), ("SYNCNORM_MAX_QUEUED", "many"), ("SYNCNORM_AUTH", "perhaps")]
)
def test_setting_that_can_not_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{value!r}"):
        Settings.from_environment({name: value})
