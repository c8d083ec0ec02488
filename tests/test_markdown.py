import pytest

from distill.markdown import cleaned, code, escaped, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("golden retriever, 12.5 %", "golden retriever, 12.5 %"),
        ("a|b", r"a\|b"),
        ("[x](http://y)", r"\[x\](http\://y)"),
        ("www.example.org", r"www\.example.org"),
        ("**b** _i_ `c` ~d~", r"\*\*b\*\* \_i\_ \`c\` \~d\~"),
        ("<img src=x>", r"&lt;img src\=x&gt;"),
        ("&lt;", "&amp;lt;"),
        ("a\\b", r"a\\b"),
        ("@user :smile: $x$ # !", r"\@user \:smile\: \$x\$ \# \!"),
        ("{x} ^1 ==y==", r"\{x\} \^1 \=\=y\=\="),
        ("one\n## two\r\n\n| a", r"one \#\# two \| a"),
    ],
)
def test_text_stays_text(text: str, expected: str):
    assert escaped(text) == expected


def test_what_cannot_be_seen_or_written_is_replaced():
    hidden = "a\x00b\u202ec\udcffd\u200be"  # NUL, right-to-left override, a byte, zero width
    assert cleaned(hidden) == "a\ufffdb\ufffdc\ufffdd\ufffde"
    escaped(hidden).encode("utf-8")
    assert cleaned("  ä  \t 犬 \u2028 x ") == "ä 犬 x"


def test_tables_and_code():
    assert table(("a", "b"), [("1", code("x"))]) == ["| a | b |", "| --- | --- |", "| 1 | `x` |"]
