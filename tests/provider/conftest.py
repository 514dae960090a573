"""What the provider tier shares: the provider, a way out that is shut, and the count of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import cloud as compute
from applying import USERINFO, MakeWorkspace, NoProvider, Outside, Provider, Tally, Workspace, find_provider
from cloud import TOKEN, VARIABLES, Cloud

TALLY = pytest.StashKey[Tally]()
PROVIDER = pytest.StashKey[Provider]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


@pytest.fixture(scope="session")
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Provider:
    """The real provider, or a loud skip."""
    try:
        found = find_provider(tmp_path_factory.mktemp("provider") / "found")
    except NoProvider as missing:
        pytest.skip(f"provider: {missing}")
    request.config.stash[PROVIDER] = found
    return found


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """The count of what the provider asked; `with tally.over(calls)` around whatever a stand-in is asked."""
    return request.config.stash[TALLY]


@pytest.fixture
def outside(tally: Tally) -> Iterator[Outside]:
    """A proxy that refuses; nothing but the provider's question who it is may get there."""
    proxy = Outside()
    yield proxy
    proxy.close()
    asked = proxy.wanted.pop(USERINFO, 0)
    tally.who_am_i += asked
    assert proxy.wanted == {}


@pytest.fixture
def workspace(provider: Provider, outside: Outside, tmp_path: Path) -> MakeWorkspace:
    """Makes work folders: `workspace("gpu-vm", variables, environment={...})`; none is initialised."""
    made: list[Workspace] = []

    def make(module: str, variables: Mapping[str, Any], *, environment: Mapping[str, str]) -> Workspace:
        shut = {"TF_CLI_CONFIG_FILE": str(provider.config), "HTTPS_PROXY": outside.address}
        folder = tmp_path / str(len(made))
        made.append(Workspace(provider.program, folder, module, variables, {**shut, **environment}))
        return made[-1]

    return make


@pytest.fixture
def cloud(tmp_path: Path, tally: Tally) -> Iterator[Cloud]:
    """Compute Engine, every call of the provider counted."""
    with compute.cloud(tmp_path) as made, tally.over(made.calls):
        yield made


@pytest.fixture
def module(workspace: MakeWorkspace, cloud: Cloud) -> Workspace:
    """gpu-vm, initialised, with variables that name everything there is to name."""
    variables = {**VARIABLES, "compute_endpoint": cloud.endpoint}
    made = workspace("gpu-vm", variables, environment={"GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN})
    made.init()
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say with which provider the tier ran, and what of its calls was answered."""
    found, tally = config.stash.get(PROVIDER, None), config.stash[TALLY]
    if found is None:
        return
    say = terminalreporter.line
    terminalreporter.section("the provider tier")
    terraform = ".".join(map(str, found.terraform))
    say(f"Terraform {terraform}, hashicorp/google {found.version} from {found.source}")
    total = tally.answered.total()
    by = ", ".join(f"{name} {count}" for name, count in sorted(tally.answered.items()))
    say(f"calls of the provider: {total + len(tally.unserved)}; answered by the stand-ins: {total} ({by})")
    say(f"unanswered: {len(tally.unserved)}")
    for line in tally.unserved:
        say(f"  {line}")
    say(f"beside them it asked {USERINFO} who it is, which no setting redirects: {tally.who_am_i} times, in vain")
    for note in tally.notes:
        say(note)
