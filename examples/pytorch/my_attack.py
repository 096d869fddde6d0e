"""Projected gradient descent on the margin between the two largest logits."""


class MyAttack:
    def __init__(self, steps=20, step_size=0.05):
        self.steps, self.step_size = steps, step_size

    def run(self, target):
        labels = target.labels.unsqueeze(1)

        def margin(logits):
            others = logits.scatter(1, labels, float("-inf"))
            return others.amax(1) - logits.gather(1, labels).squeeze(1)

        images = target.threat.random_start(target.natural)
        for _ in range(self.steps):
            _, gradient = target.victim.forward(images).gradient(margin)
            moved = images + target.threat.steepest_ascent(gradient) * self.step_size
            images = target.threat.project(moved, target.natural)
        return images
