"""The CompRess loss in a training loop of one's own: plain PyTorch, scikit-learn's digits, a CPU.

The teacher is a frozen random projection of the pixels, which tells digits apart as well as pixels
do; the student, 16 wide, learns its neighborhoods without labels.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import distill
from distill.evaluation.nn import nn_accuracy

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.5
train, val = slice(0, 1400), slice(1400, None)

teacher = nn.Linear(64, 128).requires_grad_(False)
student = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
projection = nn.Linear(16, 128)  # to the teacher's width, for one queue; dropped afterwards
loss = distill.losses.CompRess(distill.AnchorQueue(size=512, dim=128), temperature=0.04)
optimizer = torch.optim.Adam([*student.parameters(), *projection.parameters()], lr=2e-3)


def accuracy(network: nn.Module) -> float:
    """Return the accuracy of each validation image's nearest neighbor in the training images."""
    with torch.no_grad():
        rows = network(pixels).numpy()
    return nn_accuracy(rows[train], digits.target[train], rows[val], digits.target[val])


print(f"untrained student {accuracy(student):.3f}, teacher {accuracy(teacher):.3f}")
for epoch in range(15):
    for index in torch.randperm(1400).split(100):
        rows = teacher(pixels[index])
        value = loss(rows, projection(student(pixels[index])), index)
        if value is not None:  # None while the queue is empty
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        loss.enqueue(rows, index=index)
    print(f"epoch {epoch + 1:2}  loss {value.item():.4f}  student {accuracy(student):.3f}")
