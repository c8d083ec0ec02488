from distill.files import cache_folder


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/distill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/distill"
    monkeypatch.setenv("DISTILL_CACHE", "")  # empty counts as not set
    assert str(cache_folder()) == "/home/someone/.cache/distill"
    monkeypatch.setenv("DISTILL_CACHE", "~/mine")
    assert str(cache_folder()) == "/home/someone/mine"
