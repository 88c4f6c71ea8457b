"""Signals: obeyed at the end of a step, on every rank at the same one; a second one ends the process at once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import torchkeep as tk
from torchkeep.errors import CheckpointError, Preempted
from torchkeep.manager.signals import worker_init_fn

PROGRAM = """
import ctypes, sys, time
import torch, torchkeep as tk
from torchkeep.manager import signals

signals._REPEAT_SECONDS = ONE_SIGNAL

def stuck():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

class Data(torch.utils.data.Dataset):
    def __len__(self): return 10_000
    def __getitem__(self, index): return torch.tensor([float(index)])

model = torch.nn.Linear(1, 1)
progress = {"done": 0}
loader = torch.utils.data.DataLoader(Data(), batch_size=2, shuffle=True, num_workers=WORKERS)
state = {"model": model, "progress": progress, "loader": loader}
manager = tk.CheckpointManager(sys.argv[1], state, save_when=tk.EverySteps(1000) | tk.OnPreemption(grace_seconds=200))
with manager:
    step = manager.resume()
    for batch in loader:
        model(batch)
        BODY
        progress["done"] = step + 1
        print(step, flush=True)
        manager.after_step(step)
        step += 1
"""


def start(run, *, workers=0, body="time.sleep(0.02)", repeat_seconds=100.0):
    code = PROGRAM.replace("WORKERS", str(workers)).replace("BODY", body).replace("ONE_SIGNAL", str(repeat_seconds))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "0\n"
    return process


def end_of(process, seconds=300):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, [int(line) for line in out.split()], err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_saves_at_the_next_step_and_ends_with_its_code_and_a_line(tmp_path, number):
    process = start(tmp_path)
    process.send_signal(number)
    code, printed, err = end_of(process)
    assert code == 128 + number
    last = printed[-1] if printed else 0
    assert [each.step for each in tk.checkpoints(tmp_path)] == [last]
    path = tmp_path / f"step-{last:08d}"
    assert f"{number.name}: saved step {last}: {path}" in err
    assert "s were left)" in err
    assert "Traceback" not in err
    assert tk.load(path)["progress"] == {"done": last + 1}


def test_workers_ignore_a_signal_to_the_whole_group_and_the_next_run_goes_on(tmp_path):
    process = start(tmp_path, workers=2)
    os.killpg(process.pid, signal.SIGTERM)
    code, printed, err = end_of(process)
    assert code == 128 + signal.SIGTERM, err
    assert "DataLoader worker" not in err
    last = printed[-1] if printed else 0
    again = start_again(tmp_path)
    assert again == last + 1


def start_again(run):
    progress = {"done": 0}
    with tk.CheckpointManager(run, {"progress": progress}) as manager, pytest.warns(UserWarning, match="not restored"):
        step = manager.resume()
    assert progress == {"done": step}
    return step


def test_a_second_signal_ends_at_once_even_inside_a_call_that_does_not_return(tmp_path):
    # Waiting for a mutex is not interrupted by signals, as a collective that hangs is not.
    body = "if step == 1: print('stuck', flush=True); stuck()"
    process = start(tmp_path, body=body, repeat_seconds=0.1)
    while "stuck" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 128 + signal.SIGTERM  # of a grace of 200 seconds
    assert "SIGTERM, the second signal: ending at once; the last commit stays" in process.stderr.read()
    process.communicate()


def test_the_signal_that_a_launcher_passes_on_once_more_is_not_a_second_one(tmp_path):
    process = start(tmp_path, body="time.sleep(0.3)")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, printed, err = end_of(process)
    assert code == 128 + signal.SIGTERM
    assert "second signal" not in err
    assert [each.step for each in tk.checkpoints(tmp_path)] == [printed[-1] if printed else 0]


# In this process


def preempt(manager, step=3):
    os.kill(os.getpid(), signal.SIGUSR1)
    return manager.after_step(step)


def test_what_is_raised_says_what_was_saved_and_what_handled_the_signals_before_does_again(tmp_path, caplog):
    before = signal.getsignal(signal.SIGUSR1)
    manager = tk.CheckpointManager(tmp_path, {"p": {"a": 1}}, save_when=tk.OnPreemption())
    with pytest.raises(Preempted) as raised, caplog.at_level(logging.WARNING, "torchkeep"), manager:
        preempt(manager)
    assert (raised.value.code, raised.value.signal, raised.value.step) == (128 + signal.SIGUSR1, signal.SIGUSR1, 3)
    assert raised.value.path == tmp_path / "step-00000003"
    assert str(raised.value) == f"SIGUSR1: saved step 3: {tmp_path / 'step-00000003'}"
    assert caplog.messages[0].startswith(str(raised.value))
    assert signal.getsignal(signal.SIGUSR1) is before
    assert tk.CheckpointManager(tmp_path, {"p": {"a": 0}}).resume() == 4


def test_a_step_that_is_being_saved_is_not_saved_twice(tmp_path):
    manager = tk.CheckpointManager(tmp_path, {"p": {"a": 1}}, save_when=tk.OnPreemption())
    path = manager.save(3).wait()
    first = (path / "checkpoint.json").read_bytes()
    with pytest.raises(Preempted), manager:
        preempt(manager)
    assert (path / "checkpoint.json").read_bytes() == first


def test_a_save_that_fails_then_is_said_and_the_process_ends_all_the_same(tmp_path, monkeypatch, caplog):
    manager = tk.CheckpointManager(tmp_path, {"p": {"a": 1}}, save_when=tk.OnPreemption())
    manager.save(0).wait()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(Preempted) as raised, manager:
        preempt(manager)
    assert raised.value.path is None
    assert "step 3 was not saved" in caplog.messages[0]
    assert "No space left on device" in caplog.messages[0]
    assert isinstance(raised.value.__cause__, CheckpointError)
    assert [each.step for each in tk.checkpoints(tmp_path)] == [0]


def test_a_signal_after_the_last_step_is_passed_on_to_who_handled_it_before(tmp_path):
    got = []
    before = signal.signal(signal.SIGUSR1, lambda *_: got.append("passed on"))
    try:
        with tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption()) as manager:
            manager.after_step(0)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert got == ["passed on"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_the_policy_and_outside_the_block_signals_are_left_alone(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    manager = tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    with tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.EverySteps(1)):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    with manager:
        assert signal.getsignal(signal.SIGINT) != before[1]


def test_another_thread_is_told_that_signals_are_the_main_threads(tmp_path):
    told = []

    def train():
        with pytest.warns(UserWarning, match="Python handles signals in the main thread only"):
            manager = tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption()).__enter__()
        manager.after_step(0)
        told.append(manager.last_step)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert told == [0]


def test_a_child_that_is_no_worker_still_ends_when_it_is_asked_to(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption()):
        ready, is_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(is_ready, b".")
            time.sleep(300)
            os._exit(0)
        assert os.read(ready, 1) == b"."
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tk.OnPreemption(signals=(signal.SIGKILL,)), "signals that a process can handle"),
        (lambda: tk.OnPreemption(signals=()), "signals that a process can handle"),
        (lambda: tk.OnPreemption(grace_seconds=0), "a grace of more than 0 seconds; not 0"),
        (lambda: tk.OnPreemption(signals=(999,)), "999 is not a valid Signals"),
    ],
)
def test_a_preemption_that_cannot_be_is_a_value_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_policy_that_nobody_serves_is_said_once(tmp_path):
    manager = tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption())
    with pytest.warns(UserWarning, match="OnPreemption does nothing outside of the manager's `with` block"):
        manager.after_step(0)
    manager.after_step(1)
    manager.close()


def test_a_worker_that_was_not_forked_ignores_signals_when_it_is_asked_to_and_still_obeys_its_parent():
    data = TensorDataset(torch.arange(12))
    loader = DataLoader(
        data, batch_size=1, num_workers=1, multiprocessing_context="spawn", worker_init_fn=worker_init_fn
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 11
    worker.join(200)
    assert worker.exitcode == 0
