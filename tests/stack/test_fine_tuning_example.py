"""The commands of examples/fine-tuning, as its README has them. pip gets mlxtend from its index."""

from __future__ import annotations

import json

import pytest

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.helpers.stack.shell import commands_of, shell

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_commands_of_the_readme_train_and_compare(client: Client) -> None:
    shell("\n".join(commands_of(EXAMPLES / "fine-tuning" / "README.md")), SYNCNORM_URL=client.url)

    study = json.loads(shell("syncnorm study show fine-tuning --json", SYNCNORM_URL=client.url))
    assert study["jobs"] == {"succeeded": 20}
    # Each effect has the sign that its source leads to expect; the largest one is far outside of its interval.
    assert [finding["difference"]["mean"] < 0 for finding in study["findings"]] == [True] * 4
    assert study["findings"][0]["verdict"] == "agrees"
