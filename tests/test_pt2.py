"""Exported programs become graphs; archives that could run code are refused."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from edgeid.converters.onnx_import.pt2 import import_pt2  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import DataError, GraphError  # noqa: E402


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.act = torch.nn.PReLU(4)
        self.embed = torch.nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        return self.embed(self.act(self.norm(self.conv(x))).flatten(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "network.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes={"x": {0: batch}}
    )
    torch.export.save(program, path)
    return path


def altered(path, out, change):
    """A copy of the archive with ``change(name, content)`` applied to every member."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out


def test_an_exported_program_answers_as_the_network(network, exported):
    graph = import_pt2(exported, "face")
    assert graph.entry("face").shape == (1, 8, 8)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(make_engine(graph, "reference").run("face", x), expected, atol=1e-5)


def test_pickled_weights_are_refused(exported, tmp_path):
    def pickled(name, content):
        if not name.endswith("model_weights_config.json"):
            return content
        config = json.loads(content)
        config["config"]["conv.weight"]["use_pickle"] = True
        return json.dumps(config)

    with pytest.raises(DataError, match=r"'conv\.weight' is a pickled object"):
        import_pt2(altered(exported, tmp_path / "p.pt2", pickled), "face")


def test_expressions_that_would_be_evaluated_are_refused(exported, tmp_path):
    def hostile(name, content):
        if "/models/" not in name:
            return content
        marker = tmp_path / "run"
        text = content.decode()
        assert "Symbol(" in text
        start = text.index("Symbol(")
        end = text.index('"', start)
        return text[:start] + f"open('{marker}', 'w')" + text[end:]

    with pytest.raises(DataError, match="more than plain arithmetic"):
        import_pt2(altered(exported, tmp_path / "e.pt2", hostile), "face")
    assert not (tmp_path / "run").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_sample_inputs_that_are_pickled_are_refused(exported, tmp_path):
    stream = io.BytesIO()
    torch.save(Evil(tmp_path / "run"), stream)
    evil = stream.getvalue()

    def hostile(name, content):
        return evil if "/sample_inputs/" in name else content

    with pytest.raises(DataError, match=r"no \.pt2 file that torch can read"):
        import_pt2(altered(exported, tmp_path / "s.pt2", hostile), "face")
    assert not (tmp_path / "run").exists()


def test_what_is_no_archive_is_told(tmp_path):
    path = tmp_path / "n.pt2"
    with pytest.raises(DataError, match="cannot be read"):
        import_pt2(path, "face")
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"no \.pt2 file"):
        import_pt2(path, "face")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", b"")
    with pytest.raises(DataError, match="no model in the archive"):
        import_pt2(path, "face")


def test_two_inputs_are_told(tmp_path):
    class Two(torch.nn.Module):
        def forward(self, x, y):
            return x + y

    path = tmp_path / "two.pt2"
    torch.export.save(torch.export.export(Two(), (torch.zeros(1, 4), torch.zeros(1, 4))), path)
    with pytest.raises(GraphError, match="takes 2 inputs"):
        import_pt2(path, "face")
