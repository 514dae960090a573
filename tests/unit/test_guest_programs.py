"""What a VM's programs answer, without a VM."""

from __future__ import annotations

import asyncssh
import pytest

from glgpu.rehearsal.docker_engine import Refusal, nine_digits, parse, render, with_tag
from glgpu.rehearsal.guest_programs import iptables, nvidia_smi
from glgpu.rehearsal.guest_programs.container_supervisor import Stream, as_go_text
from glgpu.rehearsal.guest_programs.docker import REFERENCE, host_of, image_at, untagged, without_gpus
from glgpu.rehearsal.guest_programs.gpu_load import Load
from glgpu.rehearsal.machine_room import login_keys

MACHINE = {"instance_id": "7", "gpu_type": "nvidia-tesla-t4", "gpu_count": 2}
MACHINE |= {"driver": "570.133.20", "library": "570.133.20", "driver_loaded_at": 0.0}
BUSY = Load(80, ((4711, 1500),))


def test_nvidia_smi_shows_every_gpu_with_its_own_id() -> None:
    text, code = nvidia_smi.answer(MACHINE, ["-L"])
    first, second = text.splitlines()
    assert (code, first[:16]) == (0, "GPU 0: Tesla T4 ")
    assert first[16:] != second[16:]
    assert nvidia_smi.answer(MACHINE, ["-L"]) == (text, 0)


def test_nvidia_smi_names_fields_and_units_unless_told_not_to() -> None:
    asked = ["--query-gpu=index, memory.total", "--format=csv"]
    assert nvidia_smi.answer(MACHINE, asked)[0] == "index, memory.total [MiB]\n0, 15360 MiB\n1, 15360 MiB\n"
    assert nvidia_smi.answer(MACHINE, [*asked[:1], "--format=csv,noheader,nounits"])[0] == "0, 15360\n1, 15360\n"


def test_nvidia_smi_shows_what_the_gpus_do() -> None:
    asked = ["--query-gpu=utilization.gpu,memory.used,temperature.gpu,power.draw", "--format=csv,noheader,nounits"]
    assert nvidia_smi.answer(MACHINE, asked)[0] == "0, 0, 38, 12.50\n" * 2
    assert nvidia_smi.answer(MACHINE, asked, BUSY)[0] == "80, 1500, 62, 58.50\n" * 2


def test_nvidia_smi_lists_who_has_a_gpu_open_and_nobody_is_no_line() -> None:
    asked = ["--query-compute-apps=pid,used_memory", "--format=csv"]
    assert nvidia_smi.answer(MACHINE, asked)[0] == "pid, used_gpu_memory [MiB]\n"
    assert nvidia_smi.answer(MACHINE, asked, BUSY)[0] == "pid, used_gpu_memory [MiB]\n" + "4711, 1500 MiB\n" * 2
    assert nvidia_smi.answer(MACHINE, [asked[0], "--format=csv,noheader"])[0] == ""
    assert nvidia_smi.answer(MACHINE, ["--query-compute-apps=memory.used", "--format=csv"])[1] == 2


@pytest.mark.parametrize("lacking", [{"gpu_count": 0}, {"driver": ""}, {"driver_loaded_at": 9e9}])
def test_nvidia_smi_without_gpu_or_loaded_driver_fails_with_9(lacking: dict[str, object]) -> None:
    assert nvidia_smi.answer(MACHINE | lacking, [])[1] == 9


def test_nvidia_smi_refuses_what_it_does_not_know() -> None:
    assert nvidia_smi.answer(MACHINE, ["--gpu-reset"])[1] == 1
    assert nvidia_smi.answer(MACHINE, ["--query-gpu=name", "--format=json"])[1] == 2


def test_a_rule_appended_comes_after_dockers_own_return() -> None:
    chains = {"DOCKER-USER": [["-j", "RETURN"]]}
    iptables.apply(["-A", "DOCKER-USER", "-d", "169.254.169.254", "-j", "DROP"], chains, 4)
    assert iptables.apply(["-S", "DOCKER-USER"], chains, 4) == [
        "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A DOCKER-USER -d 169.254.169.254/32 -j DROP",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["-X", "DOCKER-USER"], ["-I", "FORWARD", "-j", "DROP"], ["-I", "DOCKER-USER", "-j", "NOPE"],
        ["-I", "DOCKER-USER", "-d", "fd20:ce::254", "-j", "DROP"], ["-I", "DOCKER-USER", "--nope"], ["-t", "nat", "-S"],
        ["-N", "DOCKER-USER"], ["-D", "DOCKER-USER", "7"], ["-I", "DOCKER-USER", "9", "-j", "DROP"], [],
    ],
)  # fmt: skip
def test_the_packet_filter_refuses_what_it_does_not_know(words: list[str]) -> None:
    with pytest.raises(iptables.Refusal):
        iptables.apply(words, {"DOCKER-USER": [["-j", "RETURN"]]}, 4)


@pytest.mark.parametrize(
    ("words", "position"),
    [
        (["image"], 0),
        (["-d", "--init", "--name", "n", "image", "-d"], 4),
        (["--name=n", "-v", "a:a", "image"], 3),
        (["-dv", "a:a", "image"], 2),
        (["-va:a", "image"], 1),
        (["--gpus", "all", "--", "image"], 3),
        (["-d"], 1),
        (["--name"], 1),
    ],
)
def test_the_image_of_a_run_is_found(words: list[str], position: int) -> None:
    assert image_at(words) == position


def test_only_gpus_are_taken_off_a_run() -> None:
    assert without_gpus(["-d", "--gpus", "all", "--name", "n"]) == ["-d", "--name", "n"]
    assert without_gpus(["--gpus=all", "--ipc=host"]) == ["--ipc=host"]


def test_references_are_read_as_docker_reads_them() -> None:
    hosts = {"python": "docker.io", "team/x": "docker.io", "a.b/x": "a.b", "localhost/x": "localhost", "h:5/x:1": "h:5"}
    assert {reference: host_of(reference) for reference in hosts} == hosts
    assert (untagged("h:5/x:1"), untagged("h:5/x")) == ("h:5/x", "h:5/x")
    assert (with_tag("h:5/x"), with_tag("x:1"), with_tag("x@sha256:1")) == ("h:5/x:latest", "x:1", "x@sha256:1")
    assert REFERENCE.fullmatch("registry.example.com:5000/Team/x") is None
    assert REFERENCE.fullmatch("registry.example.com:5000/team/x_y:1.0@sha256:" + "0" * 64)


def test_a_stream_is_cut_into_lines_and_pieces() -> None:
    entries: list[str] = []
    stream = Stream("stdout", lambda _, text, __: entries.append(text))
    for data in (b"one\ntw", b"o\n", b"x" * 16384, b"y\n", b"", b"end"):
        stream.feed(data)
    assert entries == ["one\n", "two\n", "x" * 16384, "y\n"]
    stream.finish()
    assert entries[-1] == "end"


def test_bytes_that_are_no_text_are_replaced_one_by_one() -> None:
    assert as_go_text(b"a\xff\xe2\x82z \xe2\x82\xac") == "a\ufffd\ufffd\ufffdz \u20ac"


def test_log_times_sort_once_they_have_nine_digits() -> None:
    assert nine_digits("2026-01-01T00:00:00.5Z") < nine_digits("2026-01-01T00:00:00.51Z")
    assert nine_digits("2026-01-01T00:00:00Z") == "2026-01-01T00:00:00.000000000Z"


def test_templates() -> None:
    thing = {"A": {"B": True, "C": ["x"]}, "D": {"k": "v<&>"}}
    template = '{{.A.B}} {{json .A.C}} {{index .D "k"}} {{ json .D }} end'
    assert render(template, thing) == 'true ["x"] v<&> {"k":"v\\u003c\\u0026\\u003e"} end'
    for torn in ("{{.Nope}}", "{{json", "{{range .A}}x{{end}}", "{{index .A.C 5}}"):
        with pytest.raises(Refusal):
            render(torn, thing)


def test_options_are_read_as_the_client_reads_them() -> None:
    _, call = parse(["run", "-de", "A=1", "--name=n", "-v/a:/a", "image", "-d", "--x"])
    assert call.options == {"detach": ["true"], "env": ["A=1"], "name": ["n"], "volume": ["/a:/a"]}
    assert call.arguments == ["image", "-d", "--x"]
    assert parse(["logs", "name", "-f"])[1].has("follow")


@pytest.mark.parametrize("argv", [["run", "--privileged", "x"], ["run", "-z", "x"], ["run", "--name"], ["logs", "-n"]])
def test_options_that_are_not_known_are_125(argv: list[str]) -> None:
    with pytest.raises(Refusal) as refusal:
        parse(argv)
    assert refusal.value.code == 125


def test_login_keys_are_read_as_the_guest_agent_reads_them() -> None:
    public = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    expiring = 'google-ssh {"userName":"b","expireOn":"2026-11-23T20:00:00+0000"}'
    metadata = {"ssh-keys": f"a:{public}\nb:{public} {expiring}\n:{public}\nno key\n"}
    assert set(login_keys(metadata, 1795464000 - 1)) == {"a", "b"}
    assert set(login_keys(metadata, 1795464000)) == {"a"}
    assert login_keys(metadata | {"enable-oslogin": "TRUE"}, 0) == {}
