import hashlib

import pytest

from distill.errors import DistillError
from distill.models.download import Content, DownloadError, Source, fetch, file_name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.org/b/weights.pth.tar", "weights.pth.tar"),
        ("http://a.org/weights.pth?download=1#top", "weights.pth"),
        ("HTTPS://a.org/two%20words.pth", "two words.pth"),
    ],
)
def test_the_last_part_of_the_url_names_the_file(url, name):
    assert file_name(Source(url)) == name


@pytest.mark.parametrize("url", ["https://a.org", "https://a.org/b/", "https://a.org/.."])
def test_a_url_without_a_file_name_is_refused(url, folder):
    with pytest.raises(DistillError, match=f"'{url}' names no file; give a URL that ends with"):
        fetch(Source(url), folder, instead="")


@pytest.mark.parametrize("name", ["..%2f..%2fpasswd", "a%5Cb", "a%00b", "a%0Ab"])
def test_a_name_cannot_lead_out_of_the_folder(name, folder):
    with pytest.raises(DistillError, match="names no file"):
        fetch(Source(f"https://a.org/{name}"), folder, instead="")
    assert not folder.exists()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.org/b", "a.org/b", "/b", "data:,b", "https://[::1/b"]
)
def test_other_schemes_are_refused(url, folder):
    with pytest.raises(DistillError, match="https://") as caught:
        fetch(Source(url), folder, instead="pass --teacher-weights FILE")
    assert str(caught.value).endswith(", or pass --teacher-weights FILE")


@pytest.mark.parametrize(
    "checksum",
    ["sha1:" + "0" * 40, "0" * 64, "sha256:", "sha256:0123456", "md5:" + "0" * 33, "md5:0123456g"],
)
def test_a_checksum_that_checks_nothing_is_refused(checksum, folder):
    with pytest.raises(DistillError, match=r"is not a checksum of .*; give sha256: or md5: with"):
        fetch(Source("https://a.org/b", checksum=checksum), folder, instead="")
    assert not folder.exists()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("num_digits", [8, None])
def test_first_digits_of_a_checksum_are_enough(algorithm, num_digits):
    digits = hashlib.new(algorithm, b"content").hexdigest()[:num_digits]
    content = Content(Source("https://a.org/b", checksum=f"{algorithm}:{digits.upper()}"))
    content.add(b"con")
    found = hashlib.new(algorithm, b"con").hexdigest()
    dots = "..." if num_digits else ""
    assert content.mismatch() == f"its {algorithm} is {found}, expected {digits}{dots}"
    content.add(b"tent")
    assert content.mismatch() == ""
    assert content.sha256 == hashlib.sha256(b"content").hexdigest()


def test_the_end_of_a_checksum_is_not_its_beginning():
    digits = hashlib.sha256(b"content").hexdigest()[-8:]
    content = Content(Source("https://a.org/b", checksum=f"sha256:{digits}"))
    content.add(b"content")
    assert "expected" in content.mismatch()


def test_a_length_of_either_kind_is_compared():
    content = Content(Source("https://a.org/b", num_bytes=1_000))
    content.add(b"con")
    assert content.mismatch() == "it has 3 bytes, expected 1,000"
    free = Content(Source("https://a.org/b"))
    free.add(b"con")
    assert (free.mismatch(), free.mismatch(4)) == ("", "it has 3 bytes, expected 4")


def test_the_sentence_has_everything_that_is_known():
    failure = DownloadError("it failed", "try again")
    source = Source("https://a.org/b", caveat="it moved in 2021")
    assert failure.sentence(source, "pass FILE") == (
        "it failed; known about this link: it moved in 2021; try again, or pass FILE"
    )
    assert failure.sentence(Source("https://a.org/b"), "") == "it failed; try again"
