"""Names whose only use in a file is to run or reach something."""

from __future__ import annotations

_RUNNERS = frozenset(
    """
    os posix nt posixpath ntpath subprocess sys runpy importlib imp pkgutil zipimport pickle _pickle cPickle marshal
    socket _socket shutil pty ctypes _ctypes webbrowser popen2
    """.split()  # noqa: SIM905  (as a list each would take a line)
)
_DANGEROUS = frozenset(
    """
    builtins.eval builtins.exec builtins.execfile builtins.compile builtins.__import__ builtins.open builtins.file
    builtins.input builtins.breakpoint builtins.globals builtins.locals builtins.vars builtins.delattr builtins.setattr
    builtins.apply builtins.help builtins.exit builtins.quit io.open io.open_code io.FileIO _io.open _io.open_code
    _io.FileIO codecs.open bz2.open gzip.open lzma.open operator.attrgetter operator.methodcaller _operator.attrgetter
    _operator.methodcaller code.interact code.InteractiveInterpreter code.InteractiveConsole codeop.compile_command
    commands.getoutput commands.getstatusoutput timeit.timeit timeit.repeat timeit.main cProfile.run cProfile.runctx
    profile.run profile.runctx pdb.run pdb.runeval pdb.runcall bdb.Bdb doctest.debug_script trace.Trace pip.main
    asyncio.create_subprocess_shell asyncio.create_subprocess_exec multiprocessing.Process urllib.request.urlopen
    urllib.request.urlretrieve requests.get requests.post http.client.HTTPConnection smtplib.SMTP ftplib.FTP
    torch.load torch.serialization.load torch.jit.load torch.jit._serialization.load torch.package.PackageImporter
    torch.classes.load_library torch.ops.load_library numpy.load numpy.lib.npyio.load numpy.fromfile joblib.load
    dill.loads dill.load cloudpickle.loads cloudpickle.load pandas.read_pickle pandas.io.pickle.read_pickle
    """.split()  # noqa: SIM905  (as a list each would take a line)
)
_DANGEROUS_PACKAGES = (
    "torch.hub.",
    "torch.utils.cpp_extension.",
    "torch._inductor.codecache.",
    "torch.distributed.run.",
)


def is_dangerous(module: str, name: str) -> bool:
    """Whether a file that names this is refused, rather than the name described.

    Example:
        >>> is_dangerous("os", "system"), is_dangerous("torch.hub", "load"), is_dangerous("torch", "relu")
        (True, True, False)
    """
    path = f"{module}.{name}"
    # A dotted name reaches through attributes: "torch" and "serialization.os.system".
    reached = [module.partition(".")[0], *name.split(".")[:-1]]
    return path in _DANGEROUS or path.startswith(_DANGEROUS_PACKAGES) or not _RUNNERS.isdisjoint(reached)
