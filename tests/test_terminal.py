from distill.terminal import progress_bar


def test_bytes_are_shown_with_prefixes():
    with progress_bar(5_000_000, initial=2_000_000, description="weights", unit="B") as bar:
        assert (bar.total, bar.n) == (5_000_000, 2_000_000)
    assert progress_bar(None, description="weights", unit="B").total is None
