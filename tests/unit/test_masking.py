"""No secret gets out, in whatever form and however it is cut up, and nothing else is touched."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu.masking import MASK, SHORTEST, Masker, StreamMasker

SECRET = st.text(min_size=SHORTEST, max_size=40).filter(lambda text: len(text.strip()) >= SHORTEST)
NOTHING_SPECIAL = st.text(alphabet="xyz \n", max_size=20)


def masker(*secrets: str) -> Masker:
    made = Masker()
    for secret in secrets:
        made.add(secret)
    return made


def streamed(made: Masker, pieces: list[bytes]) -> bytes:
    stream = StreamMasker(made)
    return b"".join([*map(stream.feed, pieces), stream.flush()])


def cut_up(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=len(data) + 2)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def escaped(secret: str) -> dict[str, str]:
    raw = secret.encode("utf-8", "surrogateescape")
    return {
        "raw": secret,
        "JSON": json.dumps(secret)[1:-1],
        "JSON in UTF-8": json.dumps(secret, ensure_ascii=False)[1:-1],
        "URL path": quote(raw),
        "URL component": quote(raw, safe=""),
        "form": quote_plus(raw),
    }


@pytest.mark.parametrize("form", list(escaped("")))
@given(secret=SECRET, before=NOTHING_SPECIAL, after=NOTHING_SPECIAL)
def test_a_secret_is_replaced_in_every_escaped_form(form: str, secret: str, before: str, after: str) -> None:
    written = escaped(secret)[form].encode("utf-8", "surrogateescape")
    assert written not in masker(secret).mask_bytes(before.encode() + written + after.encode())


@given(secret=SECRET, before=st.binary(max_size=7), after=st.binary(max_size=7), url_safe=st.booleans())
def test_a_secret_is_unreadable_in_base64_whatever_stands_before_and_behind_it(
    secret: str, before: bytes, after: bytes, url_safe: bool
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    raw = secret.encode()
    whole = encode(before + raw + after)
    masked = masker(secret).mask_bytes(whole)
    left, found, right = masked.partition(MASK.encode())
    assert found
    # What is still there belongs to the neighbours: at most two bytes of the secret lie in characters they share.
    assert len(left) <= (len(before) * 8 + 5) // 6
    assert len(right) <= len(whole) - (len(before) + len(raw)) * 8 // 6


@given(data=st.data(), secrets=st.lists(st.text(alphabet="abc", min_size=4, max_size=9), min_size=1, max_size=4))
def test_a_stream_is_masked_as_its_whole_is_whatever_the_writes_are(data: st.DataObject, secrets: list[str]) -> None:
    made = masker(*secrets)
    parts = st.lists(st.one_of(st.sampled_from(secrets), st.text(alphabet="abcd\n", max_size=6)), max_size=8)
    whole = "".join(data.draw(parts)).encode()
    assert streamed(made, data.draw(st.composite(cut_up)(whole))) == made.mask_bytes(whole)


@given(secrets=st.lists(st.text(alphabet="ab", min_size=4, max_size=7), min_size=1, max_size=4), text=st.text("ab"))
def test_every_byte_of_overlapping_secrets_goes_and_no_other(secrets: list[str], text: str) -> None:
    made = masker(*secrets)
    raw = {secret for secret in secrets}
    hidden = {
        position
        for secret in raw
        for begin in range(len(text))
        if text.startswith(secret, begin)
        for position in range(begin, begin + len(secret))
    }
    # Letters outside the alphabet of base64's forms of these secrets cannot be touched: compare only the kept ones.
    kept = "".join(letter for position, letter in enumerate(text) if position not in hidden)
    assert made.mask(text).replace(MASK, "") == kept


@given(text=st.text())
def test_without_a_secret_in_it_a_text_is_not_changed(text: str) -> None:
    made = masker("correct horse battery", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END KEY-----")
    assert made.mask(text) == text.encode("utf-8", "replace").decode()


@given(data=st.binary())
def test_bytes_that_are_no_text_pass_unchanged(data: bytes) -> None:
    assert streamed(masker("correct horse battery"), [data]) == data


@given(data=st.data(), secret=SECRET)
def test_no_more_is_held_back_than_the_beginning_of_a_secret(data: st.DataObject, secret: str) -> None:
    made = masker(secret)
    stream, given_in, given_out = StreamMasker(made), 0, b""
    longest = max(len(form) for form in made._forms)
    for piece in data.draw(st.composite(cut_up)((secret * 3 + "x" + secret[:-1]).encode())):
        given_in += len(piece)
        given_out += stream.feed(piece)
        assert len(stream._rest) < longest
    assert given_in == len((secret * 3 + "x" + secret[:-1]).encode())


def test_what_cannot_become_a_secret_is_let_out_at_once() -> None:
    stream = StreamMasker(masker("hunter2hunter2"))
    assert stream.feed(b"epoch 1\n") == b"epoch 1\n"
    assert stream.feed(b"key hunter2h") == b"key "
    assert stream.feed(b"orse") == b"hunter2horse"


def test_a_secret_that_is_the_beginning_of_a_longer_one_is_hidden_with_it() -> None:
    made = masker("token", "token-and-more")
    assert streamed(made, [b"a token", b"-and", b"-more b"]) == b"a [MASKED] b"
    assert streamed(made, [b"a token", b"-and", b"-less b"]) == b"a [MASKED]-and-less b"


def test_each_line_of_a_key_is_a_secret_of_its_own() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUA\nAAAEbm9uZQAAAAAAAAAB\n-----END"
    made = masker(key + "\n")
    for line in key.splitlines():
        assert made.mask(f"> {line} <") == f"> {MASK} <"
    assert made.mask(key.replace("\n", "\r\n")).replace(MASK, "").split() == []
    assert made.mask(json.dumps({"key": key})) == '{"key": "[MASKED]"}'


def test_the_space_around_a_secret_does_not_save_it() -> None:
    assert masker("  hunter2\n").mask("it is hunter2.") == "it is [MASKED]."


@pytest.mark.parametrize("secret", ["", "a", "abc", "   ", " ab ", "a\nb\nc"])
def test_what_is_too_short_to_hide_leaves_the_text_alone(secret: str) -> None:
    made = masker(secret)
    assert made.mask("a b c ab abc") == "a b c ab abc"


def test_json_as_go_and_php_write_it_is_known() -> None:
    made = masker('p<a>&s/w"')
    assert made.mask(r'{"x": "p\u003ca\u003e\u0026s/w\""}') == '{"x": "[MASKED]"}'
    assert made.mask(r'{"x": "p<a>&s\/w\""}') == '{"x": "[MASKED]"}'


def test_a_secret_that_is_no_utf_8_is_hidden_as_the_bytes_it_is() -> None:
    secret = b"\xff\xfepass\xff".decode("utf-8", "surrogateescape")
    assert masker(secret).mask_bytes(b"<\xff\xfepass\xff> pass") == b"<[MASKED]> pass"


def test_a_text_with_lone_surrogates_is_no_obstacle() -> None:
    assert masker("hunter2").mask("\ud800 hunter2") == "? [MASKED]"


def test_a_long_log_under_many_secrets_takes_seconds_not_minutes() -> None:
    key = "\n".join(base64.b64encode(bytes([line]) * 48).decode() for line in range(28))
    stream = StreamMasker(masker(key, "hunter2hunter2"))
    begin = time.process_time()
    for _ in range(32):
        stream.feed(b"epoch 12 step 345 loss 2.3456 accuracy 0.789 learning rate 0.001\n" * 512)
    assert time.process_time() - begin < 10
