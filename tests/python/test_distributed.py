"""Attention over keys that are split over processes."""

import os
import socket

import numpy as np
import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 16, generator=generator).to(dtype) for h, n in ((4, 5), (2, 37), (2, 37)))
    kept = torch.rand(2, 4, 5, 37, generator=generator) > 0.6
    kept[0, 1, 2] = False  # a row without keys
    kept[1, 0, 0, :20] = False  # a row without keys on the first rank
    return q, k, v, reticle.Mask.dense(kept.numpy())


def attend_on_rank(rank, ranks, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import reticle.distributed as distributed

    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, mask = problem(dtype)
        shard = distributed.shard_of(37)
        output, lse = distributed.attention(q, k[:, :, shard], v[:, :, shard], mask[..., shard])
        assert output.dtype == dtype
        results.append((output.float().numpy(), lse.numpy()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    queue.put((rank, results))


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_what_one_process_computes(ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=attend_on_rank, args=(rank, ranks, port, queue)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    by_rank = dict(queue.get() for _ in processes)
    for i, (dtype, tolerance) in enumerate(((torch.float32, 1e-6), (torch.bfloat16, 2e-2))):
        q, k, v, mask = problem(dtype)
        output, lse = reticle.attention(q, k, v, mask)
        for rank in range(ranks):
            np.testing.assert_allclose(by_rank[rank][i][0], output.float().numpy(), atol=tolerance)
            np.testing.assert_allclose(by_rank[rank][i][1], lse.numpy(), atol=1e-4)
            np.testing.assert_array_equal(by_rank[rank][i][0], by_rank[0][i][0])


def test_states_merge():
    q, k, v, mask = problem()
    left, right = ((k[:, :, s], v[:, :, s], mask[..., s]) for s in (slice(0, 20), slice(20, 37)))
    merged, lse = reticle.merge_states(*reticle.attention(q, *left), *reticle.attention(q, *right))
    expected = reticle.attention(q, k, v, mask)
    torch.testing.assert_close(merged, expected[0])
    torch.testing.assert_close(lse, expected[1])
    with pytest.raises(reticle.ShapeError):
        reticle.merge_states(merged, lse, merged[:1], lse[:1])
    with pytest.raises(reticle.ShapeError):
        reticle.merge_states(merged, lse[:1], merged, lse)
