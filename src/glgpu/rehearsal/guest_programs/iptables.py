"""``iptables`` and ``ip6tables`` with the chain DOCKER-USER of the filter table, kept in a file of the VM.

Known: ``-C -I -D -A -S -N`` with ``-w``, ``-t filter``, and rules of ``-s -d -p -m -i -o --dport --sport -j`` and
``!``. The rules are kept and shown, not enforced: the VM's containers have no metadata server to reach.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import sys
from pathlib import Path

from glgpu.rehearsal.guest_programs.guest import Guest

TARGETS = ("ACCEPT", "DROP", "REJECT", "RETURN")
VALUED = ("-s", "-d", "-p", "-m", "-i", "-o", "--dport", "--sport", "-j")
LONG = {
    "--source": "-s", "--destination": "-d", "--protocol": "-p", "--match": "-m", "--in-interface": "-i",
    "--out-interface": "-o", "--jump": "-j", "--check": "-C", "--insert": "-I", "--delete": "-D", "--append": "-A",
    "--list-rules": "-S", "--new-chain": "-N", "--wait": "-w", "--table": "-t",
    "--destination-port": "--dport", "--source-port": "--sport",
}  # fmt: skip


class Refusal(Exception):
    """What iptables says, and its exit code."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


def rule_of(words: list[str], family: int) -> list[str]:
    """Check a rule and bring it into the form in which ``-S`` shows it.

    Raises:
        Refusal: It is none.
    """
    rule = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "!":
            rule.append(word)
            continue
        if word not in VALUED:
            raise Refusal(f'unknown option "{word}"')
        if not words:
            raise Refusal(f'option "{word}" requires an argument')
        value = words.pop(0)
        if word in ("-s", "-d"):
            value = network(value, family)
        if word == "-j" and value not in TARGETS:
            raise Refusal(f"Couldn't load target `{value}':No such file or directory")
        rule += [word, value]
    return rule


def network(text: str, family: int) -> str:
    """An address with its prefix length.

    Raises:
        Refusal: It is none of this family.
    """
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        found = None
    if found is None or found.version != family:
        raise Refusal(f"host/network `{text}' not found")
    return str(found)


def apply(words: list[str], chains: dict[str, list[list[str]]], family: int) -> list[str]:
    """Do one command to the chains and return the lines to print.

    Raises:
        Refusal: It cannot be done.
    """
    words = [LONG.get(word, word) for word in words]
    if words[:1] == ["-w"]:
        words = words[2:] if words[1:2] and words[1].isdigit() else words[1:]
    if words[:1] == ["-t"]:
        if words[1:2] != ["filter"]:
            raise Refusal("this virtual machine has only the table filter", 3)
        words = words[2:]
    if len(words) < 2 or words[0] not in ("-C", "-I", "-D", "-A", "-S", "-N"):
        raise Refusal("no command specified" if not words else f'unknown option "{words[0]}"')
    command, chain, *rest = words
    if command == "-N":
        if chain in chains:
            raise Refusal("Chain already exists.", 1)
        chains[chain] = []
        return []
    if chain not in chains:
        raise Refusal("No chain/target/match by that name.", 1)
    rules = chains[chain]
    if command == "-S":
        return [f"-N {chain}", *(f"-A {chain} {' '.join(rule)}" for rule in rules)]
    position = int(rest.pop(0)) if command in ("-I", "-D") and rest and rest[0].isdigit() else 1
    if command == "-D" and not rest:
        if not 1 <= position <= len(rules):
            raise Refusal("Index of deletion too big.", 1)
        del rules[position - 1]
        return []
    rule = rule_of(rest, family)
    if command == "-I":
        if not 1 <= position <= len(rules) + 1:
            raise Refusal("Index of insertion too big.", 1)
        rules.insert(position - 1, rule)
    elif command == "-A":
        rules.append(rule)
    elif rule not in rules:
        raise Refusal("Bad rule (does a matching rule exist in that chain?).", 1)
    elif command == "-D":
        rules.remove(rule)
    return []


def main(argv: list[str]) -> int:
    """Run as ``NAME WORDS...``, NAME being iptables or ip6tables."""
    name, *words = argv
    guest = Guest()
    if not guest.is_root:
        reason = "Could not fetch rule set generation id: Permission denied (you must be root)"
        print(f"{name} v1.8.7 (nf_tables): {reason}", file=sys.stderr)
        return 4
    path = Path(guest.folder / f"{name}.json")
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        # Docker makes the chain with one rule: what is appended after it is never reached.
        chains = json.loads(file.read() or '{"DOCKER-USER": [["-j", "RETURN"]]}')
        try:
            lines = apply(words, chains, 6 if name == "ip6tables" else 4)
        except Refusal as refusal:
            print(
                f"{name} v1.8.7 (nf_tables): {refusal}" if refusal.code == 2 else f"{name}: {refusal}", file=sys.stderr
            )
            return refusal.code
        file.truncate(0)
        file.write(json.dumps(chains))
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
