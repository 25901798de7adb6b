"""The pair engine beside brute force and peers, on the same vectors in one process: ours, peer, ratio.

    python benchmarks/neardup.py speed    --data sgd_sharegpt.jsonl.gz --rows 100000 --threshold 0.95
    python benchmarks/neardup.py identity --data sgd_sharegpt.jsonl.gz --rows 30000
    python benchmarks/neardup.py sweep    --data sgd_sharegpt.jsonl.gz --rows 100000 --threshold 0.95
    python benchmarks/neardup.py peers    --data sgd_sharegpt.jsonl.gz --rows 30000 --semhash-python peers/bin/python
    python benchmarks/neardup.py hot      --rows 50000
    python benchmarks/neardup.py memory   --rows 1000000
    python benchmarks/neardup.py stage    --rows 1000000
    python benchmarks/neardup.py paper    --data sgd_sharegpt.jsonl.gz --rows 231005 --threshold 0.95
    python benchmarks/neardup.py survivors --rows 10000000
    python benchmarks/neardup.py gpu      --rows 1000000

Without --data the vectors are synthetic clusters. Each line gives wall seconds and, in brackets, processor
seconds of all threads, which a busy machine disturbs less. Peers live in an environment of their own
(benchmarks/requirements-peers.txt).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from tunemill.dedup.cells import Cells
from tunemill.dedup.engine import all_pairs
from tunemill.dedup.graph import PairGraph
from tunemill.dedup.hot import find_hot, summarise
from tunemill.dedup.join import join
from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.plan import choose, plan_search
from tunemill.dedup.search import search
from tunemill.dedup.sketch import SLACK
from tunemill.dedup.spread import Spread
from tunemill.dedup.survivors import rank_of
from tunemill.dedup.tasks import OnRay
from tunemill.dedup.threads import cores
from tunemill.store import Location

QUERIES = 5_000
MOST_BRUTE_FORCE = 30_000
MOST_TILES = 10_000
PAIRS_PER_PART = 4_000_000


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=["speed", "identity", "sweep", "peers", "hot", "memory", "stage", "paper", "survivors", "gpu"]
    )
    parser.add_argument("--data", type=Path, help="ShareGPT JSONL (.gz); its distinct utterances are embedded once")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="where embedded vectors are kept")
    parser.add_argument("--rows", type=int, nargs="+", default=[30_000])
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.95])
    parser.add_argument("--semhash-python", help="Python of an environment with semhash")
    parser.add_argument("--rounds", type=int, default=3, help="of speed")
    parser.add_argument("--skip-search", action="store_true", help="leave IndexFlatIP.search(k=2) out of speed")
    arguments = parser.parse_args()
    globals()[arguments.what](arguments)


def timed(work: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float, float]:
    """The result, wall seconds and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*arguments, **named)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def vectors_of(arguments: argparse.Namespace, rows: int) -> np.ndarray:
    """Unit float32 rows: embedded utterances in a fixed random order, or synthetic clusters."""
    if arguments.data is None:
        return clusters(rows)
    cached = arguments.cache / f"neardup-{arguments.data.name}.npy"
    if not cached.exists():
        from tunemill.embed.config import EmbedConfig
        from tunemill.embed.embedder import Embedder

        np.save(cached, Embedder(EmbedConfig()).encode(utterances(arguments.data)))
    return np.load(cached, mmap_mode="r")[:rows].copy()


def utterances(path: Path) -> list[str]:
    """Distinct turns in a fixed random order."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        seen = dict.fromkeys(turn["value"].strip() for line in lines for turn in json.loads(line)["conversations"])
    texts = list(seen)
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def clusters(rows: int, dims: int = 384, per_cluster: int = 20) -> np.ndarray:
    """Clusters of about 20 rows in a space whose directions fade like those of sentence embeddings."""
    rng = np.random.default_rng(0)
    scale = (np.arange(1, dims + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((rows // per_cluster + 1, dims), dtype=np.float32) * scale
    result = np.empty((rows, dims), np.float32)
    for start in range(0, rows, 65_536):
        block = result[start : start + 65_536]
        block[:] = centres[rng.integers(0, len(centres), len(block))]
        block += 0.35 * rng.standard_normal(block.shape, dtype=np.float32) * scale
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return result


def upper_triangle(x: np.ndarray, threshold: float) -> Pairs:
    """Brute force at its best here: blocked BLAS on the upper triangle, verified like ours."""
    vectors, found = Vectors.of(x), []
    for i in range(0, len(x), 2048):
        for j in range(i, len(x), 8192 if len(x) > 8192 else 2048):
            wide = 8192 if len(x) > 8192 else 2048
            a, b = np.divmod(np.flatnonzero(x[i : i + 2048] @ x[j : j + wide].T >= threshold - SLACK), len(x[j : j + wide]))
            keep = b + j > a + i
            found.append(np.stack([a[keep] + i, b[keep] + j]))
    a, b = np.concatenate(found, axis=1)
    return unique_pairs(*vectors.accepted(a, b, [threshold]), len(x))


def search_k2(x: np.ndarray) -> tuple[float, float]:
    """Seconds of ``IndexFlatIP.search(k=2)`` for all rows, from at most 5,000 queries against all rows."""
    import faiss

    faiss.omp_set_num_threads(cores())
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    queries = x[: min(QUERIES, len(x))]
    _, wall, cpu = timed(index.search, queries, 2)
    return wall * len(x) / len(queries), cpu * len(x) / len(queries)


def speed(arguments: argparse.Namespace) -> None:
    """Ours beside search(k=2) and the blocked upper triangle: medians of interleaved rounds, with the ratios' spread."""
    print(f"{arguments.rounds} rounds: median seconds (core seconds); ratio of wall seconds, median [lowest, highest]\n")
    print("| rows | t | pairs | ours | search(k=2) | ratio | upper triangle | ratio | plan |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        x = vectors_of(arguments, rows)
        all_pairs(x[:2000], 0.95)
        for threshold in arguments.threshold:
            plan = plan_search(Vectors.of(x), [threshold]).shown
            ours, flat, brute, same = [], [], [], True
            for _ in range(arguments.rounds):
                pairs, *took = timed(all_pairs, x, threshold)
                ours.append(took)
                if not arguments.skip_search:
                    flat.append(search_k2(x))
                if rows <= MOST_BRUTE_FORCE:
                    true, *took = timed(upper_triangle, x, threshold)
                    brute.append(took)
                    same &= np.array_equal(true.a, pairs.a) and np.array_equal(true.b, pairs.b)
            print(
                f"| {rows:,} | {threshold} | {len(pairs):,}{'' if same else ' DIFFER'} | {middle(ours)} | {beside(flat, ours)} "
                f"| {beside(brute, ours)} | {plan['method']}, {plan['cells']} cells, width {plan['sketch_width']} |",
                flush=True,
            )


def middle(rounds: list[Any]) -> str:
    """Median wall seconds and, in brackets, median core seconds."""
    wall, cpu = np.median(np.array(rounds), axis=0)
    return f"{wall:.2f} ({cpu:.2f})"


def beside(peer: list[Any], ours: list[Any]) -> str:
    """Two columns: the peer's seconds, and how many times as long it took in each round."""
    if not peer:
        return "- | -"
    ratios = [theirs[0] / own[0] for theirs, own in zip(peer, ours, strict=True)]
    return f"{middle(peer)} | {np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def identity(arguments: argparse.Namespace) -> None:
    """The same pairs as brute force, and the same survivors for shards, shuffled rows and precisions."""
    rows = arguments.rows[0]
    x = vectors_of(arguments, rows)
    rank = np.random.default_rng(1).permutation(rows)
    print("| t | pairs of brute force | missed | too many | within 1e-6 of t | shards 1, 2, 8 | shuffled | fp32, bf16 tiles |")
    print("|---|---|---|---|---|---|---|---|")
    vectors, lowest = Vectors.of(x), upper_triangle(x, 0.80)
    few = Vectors.of(x[:MOST_TILES])
    for threshold in (0.80, 0.90, 0.95, 0.99):
        true, ours = lowest.at_least(threshold), all_pairs(vectors, threshold)
        expected, found = set(zip(true.a, true.b, strict=True)), set(zip(ours.a, ours.b, strict=True))
        kept = survivors_of(ours, rank)
        sharded = [np.array_equal(kept, survivors_of(in_shards(vectors, threshold, shards), rank)) for shards in (1, 2, 8)]
        order = np.random.default_rng(2).permutation(rows)
        shuffled = np.array_equal(kept[order], survivors_of(all_pairs(x[order], threshold), rank[order]))
        plain = all_pairs(few, threshold)
        tiles = [np.array_equal(plain.a, in_tiles(few, threshold, kind).a) for kind in ("fp32", "bf16")]
        close = int((np.abs(true.similarity - threshold) <= 1e-6).sum())
        missed, more = len(expected - found), len(found - expected)
        print(f"| {threshold} | {len(true)} | {missed} | {more} | {close} | {sharded} | {shuffled} | {tiles} |", flush=True)


def in_shards(vectors: Vectors, threshold: float, shards: int) -> Pairs:
    """The stage's search with a ledger, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = np.zeros(len(vectors), dtype=bool)
        spread = Spread.here(vectors, blocks=3)
        found = search(spread, [threshold], ledger=Location.of(folder), fixed=fixed, max_pairs=10**9, shards=shards)
        return found.pairs.pairs(len(vectors))


def survivors_of(pairs: Pairs, rank: np.ndarray) -> np.ndarray:
    """Rows that the greedy rule keeps."""
    return PairGraph.here(pairs, rank).greedy().kept


def orphans(kept: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Removed rows without a kept row among their pairs."""
    return PairGraph.here(pairs, np.arange(len(kept))).orphans(kept)


def in_tiles(vectors: Vectors, threshold: float, precision: Any, device: str = "cpu") -> Pairs:
    """The search that GPUs run."""
    return join(vectors, None, Cells.one(len(vectors)), [threshold], device=device, precision=precision)


def sweep(arguments: argparse.Namespace) -> None:
    """The cost model's choice beside the best of a sweep over cells and sketch widths."""
    print("| rows | t | cells | width | core s |")
    print("|---|---|---|---|---|")
    for threshold in arguments.threshold:
        vectors = Vectors.of(vectors_of(arguments, arguments.rows[0]))
        chosen, _, planning = timed(plan_search, vectors, [threshold])
        results = {}
        for cells in (0, 128, 256, 512, 1024):
            for width in (32, 64, 128):
                plan = plan_search(vectors, [threshold], cells=cells, width=width)
                results[cells, width] = timed(all_pairs, vectors, threshold, plan=plan)[2]
                print(f"| {len(vectors)} | {threshold} | {cells} | {width} | {results[cells, width]:.2f} |", flush=True)
        own = timed(all_pairs, vectors, threshold, plan=chosen)[2]
        best = min(results, key=lambda key: results[key])
        print(f"chosen at {threshold}: {chosen.shown}, planned in {planning:.2f}, searched in {own:.2f} core s")
        print(
            f"best of sweep: {best[0]} cells, width {best[1]}: {results[best]:.2f} core s; chosen/best {own / results[best]:.2f}"
        )


def peers(arguments: argparse.Namespace) -> None:
    """Ours beside other ways to remove near-duplicates: time, recall of pairs, rows removed, orphans."""
    rows = arguments.rows[0]
    x = vectors_of(arguments, rows)
    rank = np.arange(rows)
    for threshold in arguments.threshold:
        true, wall, cpu = timed(all_pairs, x, threshold)
        print(f"\n{rows} rows, t = {threshold}, {len(true)} pairs\n")
        print("| | s (core s) | recall of pairs | removed | orphans |")
        print("|---|---|---|---|---|")
        kept = survivors_of(true, rank)
        print(f"| ours, exact, greedy | {wall:.2f} ({cpu:.2f}) | 1 | {(~kept).sum()} | {len(orphans(kept, true))} |", flush=True)
        for name, run in PEERS.items():
            (found, kept), wall, cpu = timed(run, x, threshold, rank)
            recall = len(np.intersect1d(found.a * rows + found.b, true.a * rows + true.b)) / max(len(true), 1)
            print(
                f"| {name} | {wall:.2f} ({cpu:.2f}) | {recall:.4f} | {(~kept).sum()} | {len(orphans(kept, true))} |", flush=True
            )
        if arguments.semhash_python:
            seconds, cpu, kept = semhash(arguments.semhash_python, x, threshold)
            print(f"| semhash (usearch) | {seconds:.2f} ({cpu:.2f}) | - | {(~kept).sum()} | {len(orphans(kept, true))} |")


def k2_rule(x: np.ndarray, threshold: float, rank: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """The common tutorial: search(k=2), keep a row if its second neighbour is below the threshold."""
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    scores, near = index.search(x, 2)
    rows = np.flatnonzero(scores[:, 1] >= threshold)
    other = np.where(near[rows, 0] == rows, near[rows, 1], near[rows, 0])
    return unique_pairs(rows, other, scores[rows, 1].astype(float), len(x)), scores[:, 1] < threshold


def semdedup(x: np.ndarray, threshold: float, rank: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """SemDeDup (Abbas et al. 2023): k-means, exact within a cell, removed if any earlier row is near, removed or not."""
    import faiss

    cells = max(1, int(len(x) ** 0.5))
    clustering = faiss.Kmeans(x.shape[1], cells, niter=10, spherical=True, seed=0)
    clustering.train(x)
    home = clustering.index.search(x, 1)[1][:, 0]
    found = [np.zeros((2, 0), np.int64)]
    for cell in range(cells):
        members = np.flatnonzero(home == cell)
        a, b = np.nonzero(np.triu(x[members] @ x[members].T >= threshold, 1))
        found.append(np.stack([members[a], members[b]]))
    a, b = np.concatenate(found, axis=1)
    kept = np.ones(len(x), dtype=bool)
    kept[np.where(rank[a] < rank[b], b, a)] = False
    return unique_pairs(a, b, np.ones(len(a)), len(x)), kept


def hnsw(x: np.ndarray, threshold: float, rank: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """FAISS HNSW (M = 32, efSearch = 64), 64 neighbours each, then greedy."""
    import faiss

    index = faiss.IndexHNSWFlat(x.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 64
    index.add(x)
    scores, near = index.search(x, 64)
    row, column = np.nonzero((scores >= threshold) & (near >= 0))
    other = near[row, column]
    use = other != row
    pairs = unique_pairs(row[use], other[use], scores[row, column][use].astype(float), len(x))
    return pairs, survivors_of(pairs, rank)


def paraphrase_mining(x: np.ndarray, threshold: float, rank: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """sentence-transformers ``paraphrase_mining`` (exact, top 100 for each row), one row per connected component."""
    import torch
    from sentence_transformers import util

    mined = util.paraphrase_mining_embeddings(torch.from_numpy(x), max_pairs=5_000_000, top_k=100)
    close = np.array([(a, b, score) for score, a, b in mined if score >= threshold]).reshape(-1, 3)
    pairs = unique_pairs(close[:, 0].astype(np.int64), close[:, 1].astype(np.int64), close[:, 2], len(x))
    graph = PairGraph.here(pairs, rank)
    return pairs, graph.one_per_component(graph.components()).kept


PEERS: dict[str, Callable[[np.ndarray, float, np.ndarray], tuple[Pairs, np.ndarray]]] = {
    "IndexFlatIP.search(k=2), keep if below": k2_rule,
    "SemDeDup-style k-means": semdedup,
    "FAISS HNSW, greedy": hnsw,
    "paraphrase_mining, components": paraphrase_mining,
}

SEMHASH = """
import json, resource, sys, time, numpy as np
from semhash import SemHash
x, threshold = np.load(sys.argv[1]), float(sys.argv[2])
texts = [str(i) for i in range(len(x))]
class Known:
    def encode(self, records, **_):
        return x[[int(r) for r in records]]
start, used = time.perf_counter(), time.process_time()
hashed = SemHash.from_embeddings(x, texts, Known())
result = hashed.self_deduplicate(threshold=threshold)
print(json.dumps([time.perf_counter() - start, time.process_time() - used, [int(r) for r in result.selected]]))
"""


def semhash(python: str, x: np.ndarray, threshold: float) -> tuple[float, float, np.ndarray]:
    """semhash on the same vectors, in its own environment: wall and core seconds, kept rows."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        done = subprocess.run(
            [python, "-W", "ignore", "-c", SEMHASH, f"{folder}/x.npy", str(threshold)], capture_output=True, text=True, check=True
        )
    wall, cpu, selected = json.loads(done.stdout.splitlines()[-1])
    kept = np.zeros(len(x), dtype=bool)
    kept[selected] = True
    return wall, cpu, kept


def hot(arguments: argparse.Namespace) -> None:
    """Copies of one sentence with small variations: too many pairs to list, the same survivors."""
    rows = arguments.rows[0]
    rng = np.random.default_rng(0)
    scale = (np.arange(1, 385) ** -0.5).astype(np.float32)
    x = rng.standard_normal(384, dtype=np.float32) * scale + 0.18 * rng.standard_normal((rows, 384), dtype=np.float32) * scale
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rank = rank_of(rng.integers(0, 50, rows).astype(float), np.arange(rows))
    for threshold in arguments.threshold:
        few = 1500
        full = survivors_of(all_pairs(x[:few], threshold), np.argsort(np.argsort(rank[:few])))
        short = hot_kept(x[:few], threshold, np.argsort(np.argsort(rank[:few])), 10_000)[0]
        (kept, pairs, size), wall, cpu = timed(hot_kept, x, threshold, rank, 50_000_000)
        print(f"{rows} variations, t = {threshold}: {size} hot rows, {kept.sum()} kept, {len(pairs)} pairs listed, ", end="")
        print(f"{wall:.1f} s ({cpu:.1f} core s); first {few} rows with and without summary agree: {np.array_equal(full, short)}")


def hot_kept(x: np.ndarray, threshold: float, rank: np.ndarray, most: int) -> tuple[np.ndarray, Pairs, int]:
    """Survivors with the pairs of hot rows summarised."""
    vectors = Vectors.of(x, threads=cores())
    rows = find_hot(Spread.here(vectors), threshold, most)
    code = np.zeros(len(x), np.uint8)
    code[rows] = 2
    pairs = summarise(vectors.take(rows), rows, all_pairs(vectors, threshold, code=code), rank, threshold)
    return survivors_of(pairs, rank), pairs, len(rows)


def memory(arguments: argparse.Namespace) -> None:
    """A large corpus of synthetic clusters: time and peak memory."""
    for rows in arguments.rows:
        x, making, _ = timed(clusters, rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for threshold in arguments.threshold:
            vectors = Vectors.of(x, threads=cores())
            plan, planning, _ = timed(plan_search, vectors, [threshold])
            pairs, wall, cpu = timed(all_pairs, vectors, threshold, plan=plan)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"{rows} rows made in {making:.0f} s; t = {threshold}: {len(pairs)} pairs, planned in {planning:.1f} s, ", end=""
            )
            print(
                f"searched in {wall:.1f} s ({cpu:.1f} core s), peak {peak / 1e6:.2f} GB, input {before / 1e6:.2f}; {plan.shown}"
            )


def survivors(arguments: argparse.Namespace) -> None:
    """Deciding who stays from five random pairs for each row: in one process, and over parts of the pairs as Ray tasks."""
    for rows in arguments.rows:
        rank = np.random.default_rng(0).permutation(rows)
        parts = max(1, 5 * rows // PAIRS_PER_PART)
        tasks = on_ray()
        handles = [tasks.start(random_pairs, rows, part, parts) for part in range(parts)]
        graph, laying, _ = timed(PairGraph.of, tasks, handles, rank)
        spread, wall, _ = timed(graph.greedy)
        labels, groups, _ = timed(graph.components)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{rows:,} rows, {graph.count:,} pairs in {parts} parts on Ray: {laying:.1f} s to lay them by priority, ", end="")
        print(f"greedy {wall:.1f} s ({spread.kept.sum():,} kept), components {groups:.1f} s, ", end="")
        print(f"this process {peak / 1e6:.2f} GB at its peak")
        whole = Pairs(
            **{name: np.concatenate([getattr(p, name) for p in tasks.get(handles)]) for name in ("a", "b", "similarity")}
        )
        here = PairGraph.here(whole, rank)
        found, wall, _ = timed(here.greedy)
        same, groups, _ = timed(here.components)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"in one process: greedy {wall:.1f} s, components {groups:.1f} s, {peak / 1e6:.2f} GB; the same rows kept: ", end=""
        )
        print(np.array_equal(found.kept, spread.kept) and np.array_equal(found.survivor, spread.survivor), end="")
        print(f", the same groups: {np.array_equal(same, labels)}")


def random_pairs(rows: int, part: int, parts: int) -> Pairs:
    """One part of five pairs for each row."""
    rng = np.random.default_rng(part)
    a = rng.integers(part * rows // parts, max((part + 1) * rows // parts - 30, 1), 5 * rows // parts)
    return Pairs(a=a, b=a + rng.integers(1, 30, len(a)), similarity=rng.uniform(0.9, 1, len(a)))


def on_ray() -> OnRay:
    """Tasks of a local Ray."""
    from tunemill.resources import connect

    connect()
    return OnRay(device="cpu")


def stage(arguments: argparse.Namespace) -> None:
    """The whole stage on Ray over files of vectors: time, and the memory of each process beside what the plan allows."""
    from tunemill.dedup.config import DedupConfig
    from tunemill.dedup.stage import STAGE
    from tunemill.progress import Progress
    from tunemill.stage import new_context, run_stage
    from tunemill.store import StageStore
    from tunemill.tables import FileSource, InputConfig

    on_ray()
    for rows, threshold in ((rows, t) for rows in arguments.rows for t in arguments.threshold):
        with tempfile.TemporaryDirectory(dir=arguments.cache) as folder:
            write_files(vectors_of(arguments, rows), Path(folder))
            context = new_context(StageStore(Location.of(f"{folder}/out")), seed=0, progress=Progress(quiet=True))
            source = FileSource(InputConfig(path=f"{folder}/in/*.parquet"))
            with Watch() as watch:
                config = DedupConfig(threshold=threshold, shards=-(-rows // 50_000))
                manifest, wall, _ = timed(run_stage, STAGE, source, config, context, overwrite=False)
            engine, details = manifest.details["engine"], manifest.details
            pairs, dropped = f"{details['pairs']:,} pairs down to {details['pair_floor']}", details["near_duplicates"]
            print(f"{rows:,} rows, t = {threshold}: {wall:.0f} s; {pairs}, {dropped:,} dropped; {engine}")
            largest, planned = watch.largest("_compare"), f"{engine['task_gb']:.2f} GB planned"
            print(f"  memory of their own: search task {largest}, {planned}; any task {watch.largest('')}; ", end="")
            print(f"this process {watch.own / 1e9:.2f} GB", flush=True)


def write_files(x: np.ndarray, folder: Path) -> None:
    """Vectors with ids as parquet files of 100,000 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "in").mkdir()
    for start in range(0, len(x), 100_000):
        part = x[start : start + 100_000]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
        ids = [f"r{i:09d}" for i in range(start, start + len(part))]
        pq.write_table(pa.table({"id": ids, "embedding": vectors}), folder / "in" / f"{start:09d}.parquet", compression="none")


class Watch:
    """The peak memory of their own (RssAnon, without the shared object store) of this process and of Ray's tasks."""

    def __enter__(self) -> Self:
        self.own, self._tasks, self._ended = 0, dict[str, int](), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def largest(self, name: str) -> str:
        """Of the tasks with this in their name."""
        found = max(((size, task) for task, size in self._tasks.items() if name in task), default=(0, "none seen"))
        return f"{found[0] / 1e9:.2f} GB ({found[1]})"

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.2):
            self.own = max(self.own, anonymous_bytes(me.pid))
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    name = process.cmdline()[0] if process.cmdline() else ""
                    if name.startswith("ray::"):
                        self._tasks[name] = max(self._tasks.get(name, 0), anonymous_bytes(process.pid))


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is neither of a file nor shared."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("RssAnon:"):
            return int(row.split()[1]) * 1024
    return 0


def paper(arguments: argparse.Namespace) -> None:
    """What 10^7 and 10^8 rows like these would take: the cost model, corrected by its error on the rows at hand."""
    x = vectors_of(arguments, arguments.rows[0])
    sample = x[np.random.default_rng(0).choice(len(x), min(len(x), 40_960), replace=False)]
    for threshold in arguments.threshold:
        expected = choose(sample, threshold, len(x)).expected_core_s
        error = float(np.median([timed(all_pairs, x, threshold)[2] for _ in range(arguments.rounds)])) / expected
        print(f"t = {threshold}: measured / expected core seconds of {len(x):,} rows: {error:.2f}")
        for rows in (10**6, 10**7, 10**8):
            there = choose(sample, threshold, rows)
            hours, brute = (s * error / 3600 for s in (there.expected_core_s, there.brute_force_core_s))
            how = f"{there.cells} cells, width {there.width}, {there.copies:.1f} copies"
            size = f"{rows * x.shape[1] * 4 / 1e9:,.0f} GB of vectors"
            print(f"  {rows:,} rows: {hours:,.2f} core hours ({how}), sketched brute force {brute:,.0f}, {size}")


def gpu(arguments: argparse.Namespace) -> None:
    """Exact search in tiles on one GPU: seconds, and the share of the peak of the matrix products."""
    import torch

    name = torch.cuda.get_device_name()
    for rows in arguments.rows:
        x = vectors_of(arguments, rows)
        vectors = Vectors.of(x, threads=cores())
        peak = product_rate(torch)
        for threshold, precision in ((t, p) for t in arguments.threshold for p in precisions(rows)):
            in_tiles(Vectors.of(x[:20_000]), threshold, precision, "cuda")
            torch.cuda.synchronize()
            pairs, wall, _ = timed(in_tiles, vectors, threshold, precision, "cuda")
            rate = rows * (rows - 1) * x.shape[1] / wall
            print(f"{name}: {rows} rows, t = {threshold}, {precision}: {len(pairs)} pairs in {wall:.2f} s, ", end="")
            print(f"{rate / 1e12:.0f} TFLOP/s, {rate / peak:.2f} of the bf16 product's {peak / 1e12:.0f} TFLOP/s", flush=True)
        if rows <= 200_000:
            exact = all_pairs(x, arguments.threshold[0])
            tiles = in_tiles(vectors, arguments.threshold[0], "bf16", "cuda")
            print("the same pairs as the processor:", np.array_equal(exact.a, tiles.a) and np.array_equal(exact.b, tiles.b))


def precisions(rows: int) -> Iterator[str]:
    """Full float32 is too slow to be worth it for many rows."""
    yield "bf16"
    yield "tf32"
    if rows <= 200_000:
        yield "fp32"


def product_rate(torch: Any) -> float:
    """FLOP/s of a bf16 product of the tiles' depth (384), alone."""
    a = torch.randn(16_384, 384, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a.T
    torch.cuda.synchronize()
    _, wall, _ = timed(lambda: ([a @ a.T for _ in range(20)][-1], torch.cuda.synchronize()))
    return float(20 * 2 * 16_384**2 * 384 / wall)


if __name__ == "__main__":
    sys.exit(main())
