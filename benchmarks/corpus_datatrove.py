"""Rules of quality and near duplicates in datatrove, on one JSONL file: seconds of each stage. Run by corpus.py in the peers' environment."""

import sys
import tempfile
import time

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main(folder):
    """folder: holds JSONL files, one a task."""
    config = MinhashConfig(num_buckets=14, hashes_per_bucket=8)  # FineWeb's
    with tempfile.TemporaryDirectory() as scratch:

        def stage(name, *steps, tasks=2):
            began = time.monotonic()
            LocalPipelineExecutor(list(steps), tasks=tasks, workers=2, logging_dir=f"{scratch}/logs/{name}").run()
            print(f"{name} {time.monotonic() - began:.1f}", flush=True)

        stage(
            "filters",
            JsonlReader(folder),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            JsonlWriter(f"{scratch}/kept"),
        )
        stage("signatures", JsonlReader(f"{scratch}/kept"), MinhashDedupSignature(f"{scratch}/sig", config=config))
        stage("buckets", MinhashDedupBuckets(f"{scratch}/sig", f"{scratch}/buckets", config=config), tasks=14)
        stage("clusters", MinhashDedupCluster(f"{scratch}/buckets", f"{scratch}/remove", config=config), tasks=1)
        stage(
            "remove",
            JsonlReader(f"{scratch}/kept"),
            MinhashDedupFilter(f"{scratch}/remove"),
            JsonlWriter(f"{scratch}/out"),
        )


if __name__ == "__main__":
    main(sys.argv[1])
