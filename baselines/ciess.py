"""CIESS: two learning agents choose how many numbers every single user and item may keep.

Qu et al., "Continuous Input Embedding Size Search For Recommender Systems", SIGIR 2023,
https://arxiv.org/abs/2304.03501. TD3, by which the agents learn: Fujimoto et al., ICML 2018, arxiv.org/abs/1802.09477.

    X_e = V_e (.) [1 at the first s_e places, 0 behind]    layer-0 rows; s_e in 1..d is the size of user or item e
    state   x_e = (training frequency, s_e, 2 q_e / p_e - 1), each in -1..1; p_e is the q_e of full sizes
    action  s_e = clip(argmax Q1(x_e, s) + noise, 1, d) over a random walk of sizes s that starts at actor(x_e);
            noise: one draw a step, the same for all users and items, as published
    reward  r_e = q_e - size_cost ((s_e - 1) / d)^2
            q_u: mean recall and NDCG at 5, 10, 20 on validation; q_i: mean q_u over the users of the item
    critics Q1, Q2(x, s) -> r + discount min(Q1', Q2')(x', actor'(x') + noise);  actor: maximise Q1(x, actor(x))
    budget P: s_e = clip(round(alpha w_e), 1, d) of wanted sizes w, alpha by bisection, the rest one by one: sum s = P

`ciess-search` runs the agents (one for users, one for items); every step trains the table from scratch. One search
serves all budgets: `ciess` takes the best step whose sizes before the noise (METHODS.md 7.7) have at most P numbers,
or else the last, scales those sizes to P and trains again from scratch. `frequency-sized` is the control without a
search: w_e = log(1 + frequency).

Deviations, with reasons:
* 3 episodes x 5 steps x 100 batches by default, not 30 x 11 x 2,000: that is 660,000 training steps. With 22 updates
  after each step the agents still learn by the published 330; one, as published, left all sizes where they were. Full
  sizes are trained in chunks of `pretrain_batches` (3,000 as published) until two of them bring nothing;
* the search aims at no budget: it tries what the agents propose, (d + 1) / 2 numbers each at first, and only size_cost
  makes that smaller. A step is judged by its sizes with noise, and the published search takes these; what a budget
  gets, without noise and scaled, no step has tried. On lastfm (dim 64) sizes went from 33 to 52 numbers each, never
  below 31, so small budgets take the last step. With `size_std` 0 in run.json a step chose the same for everyone;
* sampling, batches, L2, initial weights and validation pairs inside the search are the benchmark's, so that what is
  found holds for what is trained in the end; the learning rate (0.03, decayed) is the published one;
* the size is scaled by its bounds 1 and d: at the start of an episode all sizes are equal, least and largest the same;
* the mean quality that selects a step is over the users who have validation pairs; as published, the others have q = 0;
* the critics' targets move at every update, the actor's at every second: as METHODS.md 7.5 reads; TD3 delays both;
* the sizes after the search are trained and measured, without noise, as one more step;
* entities that are equally close to the next whole number are served in random order, not users first;
* the last training is on the training pairs alone, as all methods', not on training and validation pairs.

An interrupted search starts again from the beginning: no checkpoint is written between its steps.
"""

import copy
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from baselines import decoders
from c2f.api import BudgetError, Choice, MaskedTable, MethodError, TableParams, check, kept_sizes

KS = (5, 10, 20)


class PrefixTable(MaskedTable):
    """The first s_e of `dim` float32 numbers per node, and s_e - 1 as one byte."""

    counted = ("values",)

    @dataclass(frozen=True)
    class Params(TableParams):
        """dim: the largest size d."""

        def __post_init__(self):
            super().__post_init__()
            check(2 <= self.dim <= 256, "dim", self.dim, "between 2 and 256")

    def __init__(self, sizes, params):
        super().__init__(len(sizes), int(np.sum(sizes)), params)
        self.resize(sizes)

    def resize(self, sizes):
        """Let every node keep so many numbers: sizes (N,), each in 1..dim."""
        self.mask.copy_(torch.arange(self.params.dim) < torch.as_tensor(sizes)[:, None])

    def describe(self, num_users):
        """Note in the run's record how the numbers are shared."""
        self.details |= kept_sizes(self.mask) | spread(self.mask.sum(dim=1).cpu().numpy(), num_users)

    def export(self):
        return {
            "values": self.vectors.detach()[self.mask].cpu().numpy(),  # (sum of sizes,)
            "sizes": (self.mask.sum(dim=1) - 1).cpu().numpy().astype(np.uint8),
        }

    decode = staticmethod(decoders.prefixes)


class FrequencySized(PrefixTable):
    """Sizes that grow with the log of the training frequency: the control that a search must beat.

    Raises BudgetError below one number per node: N numbers, or 5 N bytes.
    """

    @classmethod
    def from_budget(cls, budget, graph, params):
        total, order = feasible_sizes(budget, graph.num_nodes, params.dim), torch.randperm(graph.num_nodes).numpy()
        method = cls(exact_sizes(np.log1p(frequencies(graph)), total, params.dim, order), params)
        method.describe(graph.num_users)
        return method


class CIESS(PrefixTable):
    """Sizes that `ciess-search` found, scaled to the budget; then trained from scratch.

    Raises BudgetError below one number per node: N numbers, or 5 N bytes.
    """

    @classmethod
    def from_budget(cls, budget, graph, params):
        total = feasible_sizes(budget, graph.num_nodes, params.dim)
        even = exact_sizes(np.ones(graph.num_nodes), total, params.dim, np.arange(graph.num_nodes))
        return cls(even, params)

    def fit(self, trainer, start=None):
        searched = self.searched(start)
        wanted, step = chosen_step(searched, start["step_quality"], self.num_kept)
        order = trainer.generator("ties").permutation(len(wanted))
        self.resize(exact_sizes(wanted, self.num_kept, self.params.dim, order))
        self.details |= {
            "sizes_of_step": int(start["step_ids"][step]),
            "is_last_step": step == len(searched) - 1,
            "numbers_of_step": int(wanted.sum()),
        }
        self.describe(trainer.graph.num_users)
        trainer.run(self, "train")

    def searched(self, start):
        """Return the sizes (steps, N) of the search's steps. Raises MethodError where they do not fit."""
        if start is None or "step_sizes" not in start:
            raise MethodError("ciess needs the sizes of a search; give its entry `starts_from: {method: ciess-search}`")
        sizes = start["step_sizes"].astype(np.int64) + 1
        if sizes.shape[1:] != self.mask.shape[:1] or sizes.max() > self.params.dim:
            raise MethodError(
                f"the search has sizes up to {sizes.max()} for {sizes.shape[1]} nodes, this run takes up to "
                f"{self.params.dim} for {len(self.mask)}; give both entries the same data and dim"
            )
        return sizes


class CIESSSearch(PrefixTable):
    """The table of the search's best step, and sizes (a byte each) and quality of every step that a budget may want.

    Those are the steps than which none is both better and no larger, and last the greedy sizes after the search.
    Raises BudgetError below a full table with all steps: 4 * dim * N bytes, N + 8 bytes a step, and N.
    """

    search_space = {"size_cost": Choice((0.01, 0.05))}  # both as released (METHODS.md 7)

    @dataclass(frozen=True)
    class Params(PrefixTable.Params):
        """episodes, steps: M and T; batches: trained at every step (n_b); pretrain_batches: per chunk, see the module;
        size_cost: weight of the size in the reward (lambda).
        lr_decay, decay_every, least_lr: training's learning rate is multiplied by lr_decay every so many batches.
        hidden: width of the networks; walk_steps, walk_reach: the walk takes so many steps, each so far at most;
        exploration_std: of the noise on the sizes; target_std, target_clip: of the noise on the target's sizes;
        discount, actor_lr, critic_lr, clip_norm (of gradients): of the learning; updates: of each agent at every step,
        from replay_batch transitions of the last replay_steps steps; actor_every: one actor update for so many of the
        critics; target_rate: how far the target networks move.
        """

        episodes: int = 3
        steps: int = 5
        batches: int = 100
        pretrain_batches: int = 100
        size_cost: float = 0.01
        lr_decay: float = 0.9
        decay_every: int = 200
        least_lr: float = 1e-3
        hidden: int = 256
        walk_steps: int = 5
        walk_reach: int = 5
        exploration_std: float = 6.0
        target_std: float = 2.0
        target_clip: float = 5.0
        discount: float = 0.99
        actor_lr: float = 1e-3
        critic_lr: float = 3e-3
        clip_norm: float = 0.01
        updates: int = 22
        replay_batch: int = 4096
        replay_steps: int = 100
        actor_every: int = 2
        target_rate: float = 0.005

        def __post_init__(self):
            super().__post_init__()
            counts = "episodes steps batches pretrain_batches decay_every hidden walk_reach updates"
            for name in [*counts.split(), "replay_batch", "replay_steps", "actor_every"]:
                check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
            for name in ("size_cost", "walk_steps", "exploration_std", "target_std", "target_clip"):
                check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
            for name in ("least_lr", "actor_lr", "critic_lr", "clip_norm"):
                check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
            for name in ("lr_decay", "target_rate"):
                check(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
            check(0 <= self.discount < 1, "discount", self.discount, "at least 0 and below 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        values, steps = graph.num_nodes * params.dim, params.episodes * params.steps + 1
        budget.require(numbers=values, nbytes=4 * values + graph.num_nodes + steps * (graph.num_nodes + 8))
        return cls(graph.num_nodes, params)

    def __init__(self, num_nodes, params):
        super().__init__(np.full(num_nodes, params.dim), params)
        self.agents = (Agent(params), Agent(params))  # users', items': no part of the model, hence not registered
        self.history: list[tuple[np.ndarray, float]] = []  # sizes (N,) without noise, quality with it

    def fit(self, trainer, start=None):
        self.to(trainer.device)
        params, graph, generator = self.params, trainer.graph, trainer.generator("agents")
        sides = slice(0, graph.num_users), slice(graph.num_users, graph.num_nodes)
        frequency = np.concatenate([min_max(frequencies(graph)[side]) for side in sides])
        peak = np.maximum(self.peak_quality(trainer), 1e-5)

        def observe(sizes, quality):
            clipped = np.clip(2 * quality / peak - 1, -1, 1)
            return np.stack([frequency, to_action(sizes, params.dim), clipped], axis=1).astype(np.float32)  # (N, 3)

        def choose(state):
            both = zip(self.agents, sides, strict=True)
            return np.concatenate([agent.choose(state[side], generator) for agent, side in both])

        best: dict = {}
        best_quality = -np.inf
        first = state = observe(np.full(graph.num_nodes, params.dim), peak / 2)  # the quality's coordinate is 0
        num_steps = params.episodes * params.steps
        steps = self.details["steps"] = []
        for step in range(num_steps + 1):
            last = step == num_steps or trainer.timed_out
            if step % params.steps == 0 and not last:
                state = first
            greedy = choose(state)
            noise = 0.0 if last else generator.normal(0, params.exploration_std)  # one draw for all
            sizes = np.clip(np.rint(greedy + noise), 1, params.dim).astype(np.int64)
            quality, mean = self.evaluate(trainer, sizes, step)
            self.history.append((greedy, mean))
            steps.append({"numbers": int(sizes.sum()), "quality": mean} | spread(sizes, graph.num_users))
            if mean > best_quality:
                best, best_quality = copy.deepcopy(self.state_dict()), mean
            if last:
                break
            reward, after = rewards(quality, sizes, params), observe(sizes, quality)
            for agent, side in zip(self.agents, sides, strict=True):
                agent.remember(state[side], sizes[side], reward[side], after[side])
                for _ in range(params.updates):
                    agent.update(generator)
            state = after
        self.load_state_dict(best)
        self.describe(graph.num_users)

    def peak_quality(self, trainer):
        """Return q (N,) of full sizes, trained chunk by chunk until two of them bring no better mean."""
        self.start_again(trainer, "full sizes")
        learning, peak, means, since_best = self.learning(trainer), None, [-np.inf], 0
        while since_best < 2:
            trainer.train_batches(self, f"full sizes {len(means)}", self.params.pretrain_batches, *learning)
            quality, mean = self.quality(trainer)
            peak, since_best = (quality, 0) if mean > max(means) else (peak, since_best + 1)
            means.append(mean)
        self.details["quality_of_full_sizes"] = means[1:]
        return peak

    def evaluate(self, trainer, sizes, step):
        """Return q (N,) and its mean over users after training from scratch with these sizes (N,)."""
        self.resize(sizes)
        self.start_again(trainer, step)
        trainer.train_batches(self, f"step {step}", self.params.batches, *self.learning(trainer))
        return self.quality(trainer)

    @torch.no_grad()
    def start_again(self, trainer, stream):
        """Draw fresh weights."""
        weights = trainer.generator("fresh weights", stream).standard_normal(self.vectors.shape, dtype=np.float32)
        self.vectors.copy_(torch.from_numpy(weights * np.float32(self.params.init_std)))
        if self.item_bias is not None:
            self.item_bias.zero_()

    def learning(self, trainer):
        """Return a fresh optimiser, and what lowers its learning rate after every step."""
        params, lr = self.params, trainer.settings.lr
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)

        def factor(batch):
            return max(params.lr_decay ** (batch // params.decay_every), min(1.0, params.least_lr / lr))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor).step

    def quality(self, trainer):
        """Return q (N,) of users and items on validation, and its mean over the users who have validation pairs."""
        scores, graph = trainer.validate(self, KS), trainer.graph
        of_users = np.zeros(graph.num_users)
        of_users[scores["user"]] = np.mean([scores[f"{name}@{k}"] for name in ("recall", "ndcg") for k in KS], axis=0)
        of_items = graph.train.csr().T @ of_users / np.maximum(graph.item_counts, 1)
        return np.concatenate([of_users, of_items]), float(of_users.sum() / max(len(scores["user"]), 1))

    def export(self):
        sizes = np.array([sizes for sizes, _ in self.history], dtype=np.int64).reshape(-1, len(self.mask))
        quality = np.array([mean for _, mean in self.history], dtype=np.float32)
        kept = worth_keeping(sizes.sum(axis=1), quality)
        return super().export() | {
            "step_sizes": (sizes[kept] - 1).astype(np.uint8),
            "step_quality": quality[kept],
            "step_ids": kept.astype(np.uint32),
        }


class Agent:
    """A TD3 agent: an actor that proposes a size from a state, two critics, their slow targets, and a replay."""

    def __init__(self, params):
        self.params, self.num_updates = params, 0
        self.actor = network(3, params.hidden, torch.nn.Tanh())
        torch.nn.init.uniform_(self.actor[-2].weight, -3e-3, 3e-3)
        self.critics = torch.nn.ModuleList([network(4, params.hidden) for _ in range(2)])
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=params.actor_lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=params.critic_lr)
        self.replay: deque[np.ndarray] = deque(maxlen=params.replay_steps)

    @torch.no_grad()
    def choose(self, state, generator):
        """Return sizes (n,) for states (n, 3): the best on a random walk, by the first critic."""
        dim, states = self.params.dim, torch.from_numpy(state)
        proposed = np.rint(to_size(self.actor(states)[:, 0].numpy(), dim)).astype(np.int64)
        visited = random_walk(proposed, dim, self.params.walk_steps, self.params.walk_reach, generator)
        actions = torch.from_numpy(to_action(visited, dim).astype(np.float32))  # (n, steps + 1)
        values = [self.critics[0](torch.cat([states, action[:, None]], dim=1)) for action in actions.T]
        best = torch.cat(values, dim=1).argmax(dim=1).numpy()
        return visited[np.arange(len(best)), best]

    def remember(self, state, sizes, reward, after):
        """Store a step: one transition per entity."""
        columns = [state, to_action(sizes, self.params.dim)[:, None], reward[:, None], after]
        self.replay.append(np.hstack(columns).astype(np.float32))  # (n, 8)

    def update(self, generator):
        """Update both critics and, every `actor_every`-th time, the actor; the targets follow."""
        params, self.num_updates = self.params, self.num_updates + 1
        transitions = np.concatenate(self.replay)
        batch = transitions[generator.integers(len(transitions), size=params.replay_batch)]
        state, action, reward, after = torch.from_numpy(batch).split([3, 1, 1, 3], dim=1)
        noise = np.clip(generator.normal(0, params.target_std), -params.target_clip, params.target_clip)
        target = self.critic_target(reward, after, noise)
        pair = torch.cat([state, action], dim=1)
        loss = sum(torch.nn.functional.mse_loss(critic(pair), target) for critic in self.critics)
        self.descend(self.critics, self.critic_optimizer, loss)
        follow(self.target_critics, self.critics, params.target_rate)
        if self.num_updates % params.actor_every == 0:
            loss = -self.critics[0](torch.cat([state, self.actor(state)], dim=1)).mean()
            self.descend(self.actor, self.actor_optimizer, loss)
            follow(self.target_actor, self.actor, params.target_rate)

    @torch.no_grad()
    def critic_target(self, reward, after, noise):
        """Return r + discount * min(Q1', Q2') (B, 1), at the target actor's size plus `noise` (one, in sizes)."""
        action = (self.target_actor(after) + 2 * noise / (self.params.dim - 1)).clamp(-1, 1)
        pair = torch.cat([after, action], dim=1)
        return reward + self.params.discount * torch.minimum(*(critic(pair) for critic in self.target_critics))

    def descend(self, module, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.params.clip_norm)
        optimizer.step()


def network(inputs, hidden, *end):
    """Return inputs -> hidden -> hidden -> 1 with ReLU between, and `end` behind."""
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    layers = [linear(inputs, hidden), relu(), linear(hidden, hidden), relu(), linear(hidden, 1)]
    return torch.nn.Sequential(*layers, *end)


@torch.no_grad()
def follow(target, module, rate):
    """Move the target's weights the share `rate` of the way to the module's."""
    for slow, fast in zip(target.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, rate)


def random_walk(start, dim, steps, reach, generator):
    """Return the sizes (n, steps + 1) visited from `start` (n,) within 1..dim.

    Each step goes to another size at most `reach` away, with a probability in proportion to 1 / distance.
    """
    offsets = np.array([offset for offset in range(-reach, reach + 1) if offset])
    reached = np.arange(1, dim + 1)[:, None] + offsets  # (dim, 2 reach)
    chances = np.where((reached >= 1) & (reached <= dim), 1 / np.abs(offsets), 0.0).cumsum(axis=1)
    chances /= chances[:, -1:]
    visited = [start]
    for _ in range(steps):
        drawn = generator.random((len(start), 1)) >= chances[visited[-1] - 1]
        visited.append(visited[-1] + offsets[drawn.sum(axis=1)])
    return np.stack(visited, axis=1)


def rewards(quality, sizes, params):
    """Return q - size_cost * ((s - 1) / dim)^2 for every entity (N,)."""
    return quality - params.size_cost * ((sizes - 1) / params.dim) ** 2


def to_action(sizes, dim):
    """Return sizes in 1..dim on the scale -1..1."""
    return 2 * (sizes - 1) / (dim - 1) - 1


def to_size(action, dim):
    """Return actions in -1..1 as sizes in 1..dim, not yet whole."""
    return 1 + (action + 1) / 2 * (dim - 1)


def min_max(counts):
    """Return counts on the scale -1 (the least) .. 1 (the largest)."""
    return 2 * (counts - counts.min()) / max(np.ptp(counts), 1) - 1


def frequencies(graph):
    """Return how many training pairs every node has (N,), users first."""
    return np.concatenate([np.bincount(graph.train.user, minlength=graph.num_users), graph.item_counts])


def spread(sizes, num_users):
    """Return for `details` the mean size of users and of items, and the standard deviation of all sizes (N,)."""
    numbers = sizes[:num_users].mean(), sizes[num_users:].mean(), sizes.std()
    return dict(zip(("mean_user_size", "mean_item_size", "size_std"), map(float, numbers), strict=True))


def worth_keeping(totals, quality):
    """Return the steps that some budget may want: those that no other beats at no more numbers, and the last."""
    beaten = ((totals <= totals[:, None]) & (quality > quality[:, None])).any(axis=1)
    beaten[-1:] = False
    return np.flatnonzero(~beaten)


def chosen_step(sizes, quality, total):
    """Return the sizes (N,) and the row of the best step with at most `total` numbers, else of the last."""
    affordable = sizes.sum(axis=1) <= total
    row = int(np.where(affordable, quality, -np.inf).argmax()) if affordable.any() else len(sizes) - 1
    return sizes[row], row


def feasible_sizes(budget, num_nodes, dim):
    """Return how many numbers fit beside a byte per node, at most dim each. Raises BudgetError below one each."""
    budget.require_size()
    fixed, each = budget.measure(numbers=0, nbytes=num_nodes), budget.measure(numbers=1, nbytes=4)
    if budget.amount < fixed + each * num_nodes:
        raise BudgetError(needs=fixed + each * num_nodes, budget=budget)
    return min(int(budget.amount - fixed) // each, num_nodes * dim)


def exact_sizes(wanted, total, dim, order):
    """Return whole sizes (N,) in 1..dim whose sum is `total`, as near to proportional to `wanted` (N,) as that allows.

    clip(round(alpha * wanted), 1, dim) with the largest alpha, by bisection, whose sum is at most `total`; what is left
    goes to those closest to the next whole number. order: permutation (N,), who comes first among equals.
    """
    wanted = np.maximum(wanted, 1e-9 * np.max(wanted))  # even who wants nothing grows when all others are full

    def rounded(alpha):
        return np.clip(np.floor(alpha * wanted + 0.5), 1, dim).astype(np.int64)

    low, high = 0.0, (dim + 1) / wanted.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rounded(middle).sum() <= total else (low, middle)
    sizes = rounded(low)
    missing = np.where(sizes < dim, np.round(sizes - low * wanted, 9), np.inf)  # rounded: dust breaks no tie
    closest = order[np.argsort(missing[order], kind="stable")]
    sizes[closest[: total - sizes.sum()]] += 1
    return sizes
