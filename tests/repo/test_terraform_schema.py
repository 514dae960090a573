"""The Terraform modules against the google provider's own schema, and against the rules that hold between them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
from hcl2.utils import SerializationOptions

from applying import NoProvider, find_provider, schema_of

ROOT = Path(__file__).parents[2]
TERRAFORM = ROOT / "terraform"
REFERENCE = ROOT / "docs" / "reference" / "terraform.md"
VM_MODULES = ("gpu-vm", "rehearsal-vm")

META_ARGUMENTS = {"count", "depends_on", "for_each", "provider", "lifecycle", "connection", "provisioner"}
"""What every resource takes beside its schema (https://developer.hashicorp.com/terraform/language/block/resource)."""
PROVIDER_META_ARGUMENTS = {"alias", "version"}

Block = dict[str, Any]


def parse(path: Path) -> Block:
    options = SerializationOptions(with_comments=False, strip_string_quotes=True, explicit_blocks=False)
    with path.open(encoding="utf-8") as file:
        parsed: Block = hcl2.load(file, serialization_options=options)
    return parsed


def hcl_files() -> list[Path]:
    return sorted(path for path in TERRAFORM.rglob("*.tf") if ".terraform" not in path.parts)


def module(name: str) -> Block:
    """All top-level blocks of a module, as one."""
    blocks: Block = {}
    for path in sorted((TERRAFORM / name).glob("*.tf")):
        for kind, bodies in parse(path).items():
            blocks.setdefault(kind, []).extend(bodies)
    return blocks


def named(blocks: Block, kind: str) -> dict[str, Block]:
    """The blocks of a kind with one label, by that label and in the order of the file."""
    return {name: body for entry in blocks.get(kind, []) for name, body in entry.items()}


def uses_of_google(schema: Block) -> Iterator[tuple[str, Block, Block]]:
    """Where the provider is used: a place to name, what is written there, the schema that it must follow."""
    for path in hcl_files():
        where = path.relative_to(ROOT)
        blocks = parse(path)
        for name, body in named(blocks, "provider").items():
            if name == "google":
                block = {key: value for key, value in body.items() if key not in PROVIDER_META_ARGUMENTS}
                yield f"{where}: provider {name}", block, schema["provider_block"]
        for kind, schemas in (("resource", schema["resources"]), ("data", schema["data_sources"])):
            for resource_type, bodies in named(blocks, kind).items():
                if not resource_type.startswith("google_"):
                    continue
                for name, body in bodies.items():
                    place = f"{where}: {kind} {resource_type}.{name}"
                    assert resource_type in schemas, f"{place}: the schema file has no {resource_type}"
                    yield place, body, schemas[resource_type]


def faults(place: str, body: Block, schema: Block, *, top: bool = True) -> list[str]:
    """Every argument and block that the schema does not know, or misses, or cannot be set."""
    attributes, blocks = schema.get("attributes", {}), schema.get("blocks", {})
    found, written = [], set(body)
    contents = {name: block for name, block in body.items() if name not in {"dynamic", "lifecycle"}}
    for name, dynamic in named(body, "dynamic").items():
        written.add(name)
        contents.setdefault(name, []).extend(dynamic["content"])
    for name, value in contents.items():
        if name in blocks:
            many = blocks[name].get("max")
            if many and len(value) > many:
                found.append(f"{place}: at most {many} of block {name}")
            for block in value if isinstance(value, list) else [value]:
                found += faults(f"{place}.{name}", block, blocks[name], top=False)
        elif name in attributes:
            if not attributes[name].get("required") and not attributes[name].get("optional"):
                found.append(f"{place}.{name} can only be read")
        elif not (top and name in META_ARGUMENTS):
            found.append(f"{place}.{name} is unknown")
    required = [name for name, attribute in attributes.items() if attribute.get("required")]
    required += [name for name, block in blocks.items() if block.get("min")]
    found += [f"{place}.{name} is missing" for name in required if name not in written]
    for lifecycle in body.get("lifecycle", []):
        for reference in lifecycle.get("ignore_changes", []):
            name = reference.removeprefix("${").removesuffix("}").split("[")[0].split(".")[0]
            if name not in attributes and name not in blocks:
                found.append(f"{place}: ignore_changes names {name}, which is unknown")
    return found


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Block:
    """The schema in the file that GLGPU_PROVIDER_SCHEMA names, else what the provider itself says."""
    path = os.environ.get("GLGPU_PROVIDER_SCHEMA")
    if path:
        loaded: Block = json.loads(Path(path).read_text(encoding="utf-8"))
        return loaded
    try:
        return schema_of(find_provider(tmp_path_factory.mktemp("schema") / "found"))
    except NoProvider as missing:
        pytest.skip(f"schema: GLGPU_PROVIDER_SCHEMA names none and {missing}: arguments and blocks are NOT checked")


def test_every_argument_and_block_exists_in_the_providers_schema(schema: Block) -> None:
    found, places = [], []
    for place, body, part in uses_of_google(schema):
        places.append(place)
        found += faults(place, body, part)
    for expected in ("terraform/gpu-vm/instance.tf", "terraform/bootstrap/", "provider google"):
        assert any(expected in place for place in places), expected
    assert found == []


def test_the_check_itself_sees_what_is_wrong(schema: Block, tmp_path: Path) -> None:
    path = tmp_path / "wrong.tf"
    path.write_text(
        """
        resource "google_compute_instance" "wrong" {
          machine_typ = "g2-standard-4"
          name        = "wrong"
          self_link   = "x"
          boot_disk {
            size = 10
          }
          dynamic "network_interface" {
            for_each = []
            content {
              adress = "10.0.0.1"
            }
          }
          lifecycle {
            ignore_changes = [metadata["a"], lables["b"]]
          }
        }
        """
    )
    body = named(parse(path), "resource")["google_compute_instance"]["wrong"]
    assert faults("wrong", body, schema["resources"]["google_compute_instance"]) == [
        "wrong.machine_typ is unknown",
        "wrong.self_link can only be read",
        "wrong.boot_disk.size is unknown",
        "wrong.network_interface.adress is unknown",
        "wrong.machine_type is missing",
        "wrong: ignore_changes names lables, which is unknown",
    ]


@pytest.mark.parametrize("file", ["variables.tf", "outputs.tf"])
def test_both_modules_have_the_same_interface_byte_for_byte(file: str) -> None:
    first, second = ((TERRAFORM / name / file).read_bytes() for name in VM_MODULES)
    assert first == second


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_variables_and_outputs_are_sorted_and_described(kind: str) -> None:
    entries = named(module("gpu-vm"), kind)
    assert list(entries) == sorted(entries)
    assert [name for name, body in entries.items() if not body.get("description")] == []


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_the_reference_has_a_line_for_every_variable_and_output(kind: str) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert [name for name in named(module("gpu-vm"), kind) if f"\n| `{name}` |" not in text] == []


def test_outputs_read_nothing_but_the_local_instance() -> None:
    text = (TERRAFORM / "gpu-vm" / "outputs.tf").read_text(encoding="utf-8")
    assert "local.instance" in text
    for elsewhere in ("var.", "data.", "google_", "terraform_", "module."):
        assert elsewhere not in text


@pytest.mark.parametrize("name", VM_MODULES)
def test_no_module_chooses_where_its_state_lies(name: str) -> None:
    assert [block for block in module(name)["terraform"] if "backend" in block or "cloud" in block] == []


def test_versions_have_a_floor_and_the_provider_a_ceiling() -> None:
    (block,) = module("gpu-vm")["terraform"]
    assert block["required_version"] == ">= 1.5"
    assert block["required_providers"][0]["google"]["version"] == ">= 7.19, < 8"


def test_every_instance_is_deleted_by_compute_engine_at_its_end() -> None:
    instance = named(module("gpu-vm"), "resource")["google_compute_instance"]["run"]
    (scheduling,) = instance["scheduling"]
    assert scheduling["instance_termination_action"] == "DELETE"
    assert scheduling["max_run_duration"] == [{"seconds": "${var.machine.max_run_seconds}"}]


def test_what_jobs_change_through_the_api_is_left_alone_by_a_second_apply() -> None:
    instance = named(module("gpu-vm"), "resource")["google_compute_instance"]["run"]
    (lifecycle,) = instance["lifecycle"]
    assert lifecycle["ignore_changes"] == [
        '${labels["glgpu-expires"]}',
        '${metadata["glgpu-host-key"]}',
        '${metadata["glgpu-ssh-port"]}',
        '${metadata["ssh-keys"]}',
    ]


def test_all_of_it_is_formatted() -> None:
    terraform = shutil.which("terraform") or shutil.which("tofu")
    if terraform is None:
        pytest.skip("terraform: neither it nor tofu is on PATH, the format of terraform/ is NOT checked")
    done = subprocess.run(
        [terraform, "fmt", "-check", "-recursive", "-diff", str(TERRAFORM)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
