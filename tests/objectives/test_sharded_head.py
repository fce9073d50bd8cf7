"""A head whose weight is sharded over processes: the loss and the mean gradient of one process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from torch import Tensor, nn

from understudy.objectives.chunked import loss_from_hidden
from understudy.objectives.divergences import against_expert, forward_kl_from_logp
from understudy.objectives.laws import DenseLaw, Head, HeadLaw, Law

NUM_PROCESSES, N, V, D = 2, 8, 6, 4


class Student(nn.Module):
    """A body, and a head that only its weight is used of: the wrapper does not see it run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(D, D)
        self.head = nn.Linear(D, V)

    def forward(self, input_ND: Tensor, law: Law) -> Tensor:
        hidden_ND = torch.tanh(self.body(input_ND))
        weight_N = torch.ones(len(input_ND))
        head = Head(self.head.weight, self.head.bias)
        # Tiles of two rows: each of them must not gather anew.
        return loss_from_hidden(
            against_expert(forward_kl_from_logp), hidden_ND, head, weight_N=weight_N, law=law, rows_per_tile=2
        )[0]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return (
        torch.randn(N, D, generator=made),
        torch.randn(N, D, generator=made),
        torch.randn(V, D, generator=made),
    )


def work(rank: int, folder: str, sharded: tuple[str, ...]) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_PROCESSES
    )
    mesh = init_device_mesh("cpu", (NUM_PROCESSES,))
    input_ND, expert_hidden_ND, expert_VD = batch()
    # Uneven shares, so that one process walks more tiles than the other.
    rows = slice(0, 6) if rank == 0 else slice(6, N)
    expert_head = Head(distribute_tensor(expert_VD, mesh, [Shard(0)]))
    for name in sharded:
        student = Student()
        if name == "own group":
            fully_shard(student.head, mesh=mesh)
        fully_shard(student, mesh=mesh)
        student(input_ND[rows], HeadLaw(expert_hidden_ND[rows], expert_head)).backward()
        grads = {}
        for key, parameter in student.named_parameters():
            assert isinstance(parameter.grad, DTensor)
            grads[key] = parameter.grad.full_tensor()
        if rank == 0:
            torch.save(grads, Path(folder) / f"{name}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_gradients_of_a_sharded_head_are_those_of_one_process(tmp_path):
    sharded = ("with the body", "own group")
    # The slow imports once, not once a process.
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.tensor"])
    torch.multiprocessing.start_processes(  # pyright: ignore
        work, (str(tmp_path), sharded), NUM_PROCESSES, start_method="forkserver"
    )
    input_ND, expert_hidden_ND, expert_VD = batch()
    student = Student()
    student(input_ND, DenseLaw((expert_hidden_ND @ expert_VD.T).log_softmax(-1))).backward()
    for name in sharded:
        found = torch.load(tmp_path / f"{name}.pt")
        for key, parameter in student.named_parameters():
            assert parameter.grad is not None
            # Both ways average over processes, as the trainer expects.
            torch.testing.assert_close(found[key] * NUM_PROCESSES, parameter.grad, rtol=2e-5, atol=2e-6)
