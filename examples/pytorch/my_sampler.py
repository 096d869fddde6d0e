"""Langevin Monte Carlo with momentum, as in examples/my-sampler, which is its port to Rust."""


class MySampler:
    # One tensor per particle, kept and saved by the host: the velocity.
    state_tensors = 1

    def __init__(self, step_size=0.2, noise=0.1, momentum=0.5):
        self.step_size, self.noise, self.momentum = step_size, noise, momentum

    def step(self, step):
        velocity = step.state[0] * self.momentum + step.threat.steepest_ascent(step.gradient)
        noise = step.random.normal(step.particles) * self.noise
        particles = step.particles + step.threat.steepest_ascent(velocity) * self.step_size + noise
        return particles, [velocity]
