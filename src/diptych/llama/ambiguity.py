"""Grammars that can be read in ever more ways: llama.cpp would keep them all, and hang or run out of memory.

It holds a stack of what is still to come for each way to read the text so far, and never joins two of them. In

    root ::= "(" root ")" | "(" root "]" | "x"

each ( doubles the stacks, and a token of twenty of them makes a million. So two ways through the same text are followed
here side by side: where both arrive in one rule with different things to come, all of it is read twice; where that
rule leads back to the one they parted in, it is without end. Ways that part because a rule may end early or late are not
followed: they make stacks one by one, which `Constraint` notices in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

from diptych.llama.pattern import Ranges
from diptych.llama.rules import EMPTY, Rules

MAX_DOUBLINGS = 8  # inside one another: 256 stacks
_COPIES = 2  # of a repetition that are told apart; more are taken as any number
_MOST_PAIRS = 20_000  # looked at, half a second; what shows itself later is left to the limit of time
_MOST_PAIRS_OF_ONE = 200  # that part in one rule, where it does not come back to itself
_MOST_WAYS = 500  # to go on behind a character
_FEW_PATHS = 2_000  # ways to come to a rule that need no look: at most as many stacks
_END = -1

Stack = tuple[int, ...]  # places where it goes on, the next one last
Element = int | Ranges  # a rule, _END, or the characters taken


@dataclass
class _Places:
    """The elements of all alternatives in one row, each alternative with _END behind it. `starts` has their first places."""

    elements: list[Element] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    starts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, rule: int, alternatives: Iterable[list[Element]]) -> None:
        self.starts[rule] = []
        for alternative in alternatives:
            self.starts[rule].append(len(self.elements))
            self.elements += [*alternative, _END]
            self.owners += [rule] * (len(alternative) + 1)

    def of(self, rule: int) -> Iterator[int]:
        """The places of a rule where it names another."""
        for place in self.starts[rule]:
            while (element := self.elements[place]) != _END:
                if isinstance(element, int):
                    yield place
                place += 1

    def calls(self, rule: int) -> Iterator[int]:
        """The rules that a rule names."""
        return (element for place in self.of(rule) if isinstance(element := self.elements[place], int))

    def nests(self, group: set[int]) -> bool:
        """Whether one of the rules names one of them with something behind it, which a stack has to keep."""
        return any(
            self.elements[place] in group and self.elements[place + 1] != _END for rule in group for place in self.of(rule)
        )

    def behind(self, stack: Stack) -> Stack:
        """The stack with its next element done; one that ends an alternative leaves nothing."""
        after = stack[-1] + 1
        return stack[:-1] if self.elements[after] == _END else (*stack[:-1], after)

    def leading_to(self, targets: Iterable[int]) -> set[int]:
        """The places whose alternative goes on to one of the rules."""
        callers: dict[int, list[int]] = {}
        for rule in self.starts:
            for called in self.calls(rule):
                callers.setdefault(called, []).append(rule)
        reach = set(targets)
        todo = list(reach)
        while todo:
            new = set(callers.get(todo.pop(), ())) - reach
            reach |= new
            todo += new
        out: set[int] = set()
        going = False
        for place in range(len(self.elements) - 1, -1, -1):
            element = self.elements[place]
            going = element != _END and (going or (isinstance(element, int) and element in reach))
            if going:
                out.add(place)
        return out

    def ways(self, stack: Stack) -> list[Stack]:
        """The stacks that a stack is before its next character; the empty one where it may be done."""
        seen: set[Stack] = set()
        todo, out = [stack], []
        while todo and len(seen) < _MOST_WAYS:
            if (one := todo.pop()) in seen:
                continue
            seen.add(one)
            if not one or not isinstance(element := self.elements[one[-1]], int):
                out.append(one)
                continue
            rest = self.behind(one)
            for start in self.starts[element]:
                todo.append(rest if self.elements[start] == _END else (*rest, start))
        return out


def endless(rules: Rules) -> int | None:
    """A rule that a text can come back to in several ways, or that too many ways lead to; None where there is none."""
    places = _placed(rules)
    groups = _groups(places)
    pairs = _Pairs(places)
    for group in groups:
        if places.nests(set(group)):
            live = places.leading_to(group)
            for rule in group:
                if not pairs.doubled(rule, live, _MOST_PAIRS).isdisjoint(group):
                    return rule
    return _crowded(places, groups, pairs)


def _crowded(places: _Places, groups: list[list[int]], pairs: _Pairs) -> int | None:
    """A rule inside more doublings than allowed."""
    group_of = {rule: i for i, group in enumerate(groups) for rule in group}
    if not _many_paths(places, groups, group_of):
        return None
    live = places.leading_to(rule for rule in places.starts if any(True for _ in places.calls(rule)))
    doublings = [0] * len(groups)
    for i, rule in _callers_first(groups):
        for called in places.calls(rule):
            doublings[group_of[called]] = max(doublings[group_of[called]], doublings[i])
        for z in pairs.doubled(rule, live, _MOST_PAIRS_OF_ONE):
            doublings[group_of[z]] = max(doublings[group_of[z]], doublings[i] + 1)
            if doublings[group_of[z]] > MAX_DOUBLINGS:
                return z
    return None


def _many_paths(places: _Places, groups: list[list[int]], group_of: dict[int, int]) -> bool:
    """Whether there are so many ways to come to a rule that they need a look."""
    paths = [1] * len(groups)
    for i, rule in _callers_first(groups):
        for called in places.calls(rule):
            if (j := group_of[called]) != i:
                paths[j] += paths[i]
    return max(paths) > _FEW_PATHS


def _callers_first(groups: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Rules with the numbers of their groups."""
    for i in range(len(groups) - 1, -1, -1):
        for rule in groups[i]:
            yield i, rule


class _Pairs:
    """Two different ways through the same text."""

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._left = float(_MOST_PAIRS)

    def doubled(self, rule: int, live: set[int], most: int) -> set[int]:
        """The rules that two ways, which part in `rule`, come to be in at once with different things to come.

        Only ways with something `live` to come are followed, and at most so many pairs of them.
        """
        out: set[int] = set()
        seen: set[tuple[Stack, Stack]] = set()
        todo: deque[tuple[Stack, Stack]] = deque()
        for place in self._places.of(rule):
            todo += self._parted(self._places.ways((place,)), None, live)
        while todo and self._left > 0 and len(seen) < most:
            pair = todo.popleft()
            if pair in seen:
                continue
            seen.add(pair)
            self._left -= 1
            a, b = pair
            if shared := _shared(a, b):
                out.update(self._places.owners[place] for place in a[-shared:])
                a, b = a[:-shared], b[:-shared]
            else:
                a, b = self._places.behind(a), self._places.behind(b)
            todo += self._parted(self._places.ways(a), self._places.ways(b), live)
        return out

    def _parted(self, a: list[Stack], b: list[Stack] | None, live: set[int]) -> Iterator[tuple[Stack, Stack]]:
        """Pairs of different ways that may take the same character and lead on; of `a` with each other where `b` is None."""
        a = [one for one in a if not live.isdisjoint(one)]
        every = combinations(a, 2) if b is None else ((x, y) for x in a for y in b if x != y and not live.isdisjoint(y))
        for x, y in every:
            self._left -= 0.1
            if self._left <= 0:
                return
            if _meet(self._places.elements[x[-1]], self._places.elements[y[-1]]):
                yield (x, y) if x < y else (y, x)


def _shared(a: Stack, b: Stack) -> int:
    """How many places at the end are the same."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n


def _meet(a: Element, b: Element) -> bool:
    """Whether two sets have a character in common."""
    if isinstance(a, int) or isinstance(b, int):
        return False
    return any(low <= high2 and low2 <= high for low, high in a for low2, high2 in b)


def _placed(rules: Rules) -> _Places:
    out = _Places()
    made = max(rules.alternatives, default=0) + 1
    for rule, alternatives in rules.alternatives.items():
        if rule not in rules.repeats:
            out.add(rule, ([e for symbol in symbols for e in _elements(rules, symbol)] for symbols in alternatives))
            continue
        symbol, low, high = rules.repeats[rule]
        one = _elements(rules, symbol)
        first = one * min(low, _COPIES)
        if high is not None and low <= _COPIES and high - low <= _COPIES:
            out.add(rule, [first + one * n for n in range(high - low + 1)])
        else:
            out.add(rule, [[*first, made]])
            out.add(made, [[*one, made], []])
            made += 1
    return out


def _elements(rules: Rules, symbol: int) -> list[Element]:
    if symbol >= 0:
        return [symbol]
    return [] if symbol == EMPTY else list(rules.texts[-2 - symbol])


def _groups(places: _Places) -> list[list[int]]:
    """Rules that call one another, together; those that are called before those that call (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_: list[int] = []
    is_open: set[int] = set()
    out: list[list[int]] = []
    for first in places.starts:
        path = [] if first in index else [(first, places.calls(first))]
        while path:
            rule, calls = path[-1]
            if rule not in index:
                index[rule] = low[rule] = len(index)
                open_.append(rule)
                is_open.add(rule)
            for called in calls:
                if called not in index:
                    path.append((called, places.calls(called)))
                    break
                if called in is_open:
                    low[rule] = min(low[rule], index[called])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[rule])
                if low[rule] == index[rule]:
                    out.append([])
                    while not out[-1] or out[-1][-1] != rule:
                        out[-1].append(open_.pop())
                        is_open.discard(out[-1][-1])
    return out
