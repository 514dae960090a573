"""The serial console: which copy of the host key counts, how often the VM booted, and what is shown of it."""

from __future__ import annotations

import pytest

from fakes import Stage
from glgpu.steps.serial_console import SHOWN_LINES, boots, end_of, printed_host_key, show_end

KEY, OTHER = "AAAAC3Nz" + "B" * 60, "AAAAC3Nz" + "C" * 60
LINE = f"startup-script: glgpu: host key: ssh-ed25519 {KEY}"
BLOCK = (
    "<14>Nov 23 20:00:05 cloud-init: #############################################################\r\n"
    "-----BEGIN SSH HOST KEY KEYS-----\r\n"
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY= root@vm\r\n"
    f"ssh-ed25519 {OTHER} root@vm\r\n"
    "-----END SSH HOST KEY KEYS-----\r\n"
)


@pytest.mark.parametrize(
    "before",
    [
        "Nov 23 20:00:07 vm google_metadata_script_runner[733]: ",
        "Nov  3 20:00:07 vm google_metadata_script_runner[733]: ",
        "[   21.454760] google_metadata_script_runner[733]: ",
        "2026-11-23T20:00:07.362836+00:00 localhost google_metadata_script_runner[740]: ",
        "google_metadata_script_runner: ",
    ],
)
def test_the_start_up_scripts_line_is_known_however_the_console_dates_it(before: str) -> None:
    assert printed_host_key(f"[    0.000000] Linux version 6.8\r\n{before}{LINE}\r\nvm login: ") == KEY


@pytest.mark.parametrize(
    "forged",
    [
        LINE,
        f"Nov 23 20:00:07 vm sshd[99]: Invalid user google_metadata_script_runner[1]: {LINE}",
        f"Nov 23 20:00:07 vm logger: google_metadata_script_runner[1]: {LINE}",
        f"Nov 23 20:00:07 vm google_metadata_script_runner[733]: {LINE} and more",
        f"Nov 23 20:00:07 vm google_metadata_script_runner[733]: {LINE[:-1]}",
        f"Nov 23 20:00:07 vm google_metadata_script_runner[733]: startup-script: echo {LINE}",
        f"ssh-ed25519 {KEY} root@vm",
        f"Nov 23 20:00:07 vm logger: -----BEGIN SSH HOST KEY KEYS-----\nssh-ed25519 {KEY} root@vm\n",
    ],
)
def test_what_others_log_is_no_host_key(forged: str) -> None:
    assert printed_host_key(forged) == ""


def test_cloud_inits_block_counts_where_our_line_is_missing() -> None:
    assert printed_host_key(BLOCK) == OTHER


def test_our_line_goes_before_cloud_inits_whose_key_the_agent_may_have_replaced() -> None:
    assert printed_host_key(f"{BLOCK}google_metadata_script_runner[7]: {LINE}\r\n") == KEY


def test_the_same_key_at_a_second_boot_is_one_key() -> None:
    assert printed_host_key(f"google_metadata_script_runner[7]: {LINE}\r\n" * 2) == KEY


def test_two_keys_are_none() -> None:
    second = LINE.replace(KEY, OTHER)
    assert printed_host_key(f"script_runner: {LINE}\nscript_runner: {second}\n") == ""


def test_boots_are_counted_by_firmware_or_kernel_whichever_says_more() -> None:
    firmware, kernel = "SeaBIOS (version 1.8.2-google)\n", "[    0.000000] Linux version 6.8.0-1045-gcp\n"
    assert boots("") == 0
    assert boots(firmware + kernel) == 1
    assert boots(kernel * 3 + firmware) == 3
    assert boots("a log that speaks of a Linux version 6.8\n") == 0


def test_the_end_is_short_and_without_control_characters() -> None:
    raw = "\n".join(["first", *(f"line {n}" for n in range(100))])
    raw += "\r\n\x1b[0;1;31mred\x1b[0m \x1b]0;title\x07text\x00\x08\r\n\r\n\x1b[0Ksection_end:1:vm\r\x1b[0K\r\n"
    lines = end_of(raw)
    assert len(lines) == SHOWN_LINES
    assert lines[-2:] == ["red text", "section_end:1:vm"]
    assert "line 99" in lines
    assert "first" not in lines


def test_it_is_shown_in_a_section_masked_and_each_line_cut(stage: Stage) -> None:
    stage.run.console.masker.add("a-secret-of-somebody")
    show_end(stage.run, stage.vm(), f"{'x' * 290} a-secret-of-somebody\ntoken a-secret-of-somebody\n")
    assert "serial console" in stage.log
    assert "token [MASKED]" in stage.log
    assert "a-secret" not in stage.log
    assert all(len(line) <= 302 for line in stage.log.splitlines())


def test_an_empty_console_is_said(stage: Stage) -> None:
    show_end(stage.run, stage.vm(), "")
    assert "nothing was printed there" in stage.log
