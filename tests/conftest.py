"""Every test has a cache folder of its own, so that none sees what another left."""

import contextlib
import os
import signal

import pytest
from hypothesis import settings

# The same examples in every run: a red run of tests can be had again. Other examples are drawn
# with HYPOTHESIS_PROFILE=random.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Started in the background, a process ignores Ctrl-C, and so does what it starts: the tests of
# interruptions would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # not in the main thread: nothing can be done here
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_home_of_the_user(tmp_path_factory):
    """What tests share is made before `own_home`, and must not see the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def on_gpu():
    """Makes a tensor say that it lies on a GPU; what is computed from it does not say so."""
    torch = pytest.importorskip("torch")

    class Pretended(torch.Tensor):
        is_cuda = True
        __torch_function__ = torch._C._disabled_torch_function_impl

    return lambda tensor: tensor.as_subclass(Pretended)


@pytest.fixture(scope="module")
def one_thread():
    """Models of a test's size are fastest on one thread, above all on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
