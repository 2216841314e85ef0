"""Where sessions' folders are after each way that a server can die in the middle of moving one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import workspaces as workspaces_module
from amplifier_api_server.control_plane.pods.workspaces import Workspaces
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId, new_session_id

RUN, TENANT, SESSION = RuntimeId("run_a"), TenantId("ten_a"), SessionId("sess_a")


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    one = Workspaces(tmp_path)
    one.make()
    one.make_home(RUN, None)
    return one


def filled(workspaces: Workspaces) -> Path:
    workspaces.attach(RUN, TENANT, SESSION, None)
    inside = workspaces.home(RUN).workspace / SESSION
    (inside / "file").write_text("kept")
    return inside


def kept(workspaces: Workspaces) -> str:
    return (workspaces.at_rest(TENANT, SESSION) / "file").read_text()


def test_there_and_back(workspaces: Workspaces) -> None:
    filled(workspaces)
    assert not workspaces.at_rest(TENANT, SESSION).exists()
    workspaces.detach(RUN, TENANT, SESSION)
    assert kept(workspaces) == "kept"
    assert os.listdir(workspaces.home(RUN).workspace) == []


def test_a_runtime_that_is_removed_gives_its_sessions_back(workspaces: Workspaces) -> None:
    filled(workspaces)
    workspaces.remove_home(RUN)
    assert kept(workspaces) == "kept"
    assert workspaces.homes() == []
    workspaces.empty_trash()
    assert os.listdir(workspaces.data_dir / "trash") == []


def test_dying_between_the_mark_and_the_move_in(workspaces: Workspaces) -> None:
    filled(workspaces)
    workspaces.detach(RUN, TENANT, SESSION)
    (workspaces.home(RUN).attached / SESSION).touch()
    workspaces.remove_home(RUN)
    assert kept(workspaces) == "kept"


def test_dying_between_the_mark_and_the_move_in_where_a_sandbox_took_the_name(workspaces: Workspaces) -> None:
    filled(workspaces)
    workspaces.detach(RUN, TENANT, SESSION)
    (workspaces.home(RUN).attached / SESSION).touch()
    (workspaces.home(RUN).workspace / SESSION).mkdir()
    workspaces.remove_home(RUN)
    assert kept(workspaces) == "kept"


def test_dying_between_the_move_out_and_the_mark(workspaces: Workspaces) -> None:
    inside = filled(workspaces)
    os.rename(inside, workspaces.at_rest(TENANT, SESSION))
    workspaces.remove_home(RUN)
    assert kept(workspaces) == "kept"


def test_an_attachment_that_fails_leaves_the_folder_at_rest(
    workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(workspaces)
    workspaces.detach(RUN, TENANT, SESSION)

    def fails(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Workspaces, "_move_in", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        workspaces.attach(RUN, TENANT, SESSION, None)
    assert kept(workspaces) == "kept"
    assert workspaces.attached(RUN) == (TENANT, [])


def test_what_a_runtime_left_beside_its_sessions_is_deleted(workspaces: Workspaces) -> None:
    filled(workspaces)
    (workspaces.home(RUN).workspace / "sess_fake").mkdir()
    workspaces.remove_home(RUN)
    assert os.listdir(workspaces.data_dir / "workspaces" / TENANT) == [SESSION]


def test_forgetting_the_last_session_forgets_the_tenant(workspaces: Workspaces) -> None:
    filled(workspaces)
    workspaces.detach(RUN, TENANT, SESSION)
    workspaces.forget(TENANT, SESSION)
    assert os.listdir(workspaces.data_dir / "workspaces") == []
    workspaces.empty_trash()
    assert os.listdir(workspaces.data_dir / "trash") == []


def thrown_away(workspaces: Workspaces, tenant: str, files: int) -> None:
    session = new_session_id()
    folder = workspaces.at_rest(TenantId(tenant), session)
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / str(number)).touch()
    workspaces.forget(TenantId(tenant), session)


def test_nobodys_deleted_files_stay_for_a_folder_that_is_filled_as_fast_as_it_is_emptied(
    workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces_module, "_STEPS_OF_A_TREE", 10)
    monkeypatch.setattr(workspaces_module, "_STEPS_OF_A_TENANT", 30)
    trash = workspaces.data_dir / "trash"
    thrown_away(workspaces, "ten_evil", 20)
    (refilled,) = trash.iterdir()
    for number in range(40):
        thrown_away(workspaces, "ten_other", 5)
        thrown_away(workspaces, "ten_evil", 5)
        assert workspaces.empty_trash()  # there is more to do, and it has come back all the same
        assert [path.name for path in trash.iterdir() if path.name.startswith("ten_other")] == []
        for more in range(15):
            (refilled / f"{number}-{more}").touch()
    assert len([*trash.iterdir()]) < 5, "what else the tenant deleted goes as well"
    while workspaces.empty_trash():
        pass
    assert [*trash.iterdir()] == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "-rf", "a" * 200, "a\0b", "a b", "ä"])
def test_a_name_that_is_no_id_is_refused_everywhere(workspaces: Workspaces, name: str) -> None:
    for call in (
        lambda: workspaces.attach(RUN, TENANT, SessionId(name), None),
        lambda: workspaces.attach(RUN, TenantId(name), SESSION, None),
        lambda: workspaces.attach(RuntimeId(name), TENANT, SESSION, None),
        lambda: workspaces.detach(RUN, TENANT, SessionId(name)),
        lambda: workspaces.forget(TenantId(name), SESSION),
        lambda: workspaces.make_home(RuntimeId(name), None),
        lambda: workspaces.install(RUN, name, Path("/etc")),
    ):
        with pytest.raises(ValueError, match="no id"):
            call()


def test_the_data_folder_is_closed_to_others(workspaces: Workspaces) -> None:
    assert workspaces.data_dir.stat().st_mode & 0o777 == 0o700
