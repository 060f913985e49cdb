"""The rules of a grammar, reduced to which rule may begin with which: enough to see what llama.cpp would choke on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from diptych.errors import GrammarError

TERMINAL = -1  # takes a character or a token
EMPTY = -2  # a literal without characters
MAX_CHAIN = 1000  # rules that begin with one another: llama.cpp recurses along them
MAX_WAYS = 10_000  # to begin a rule: llama.cpp holds them all, and compares each with each


class Rules:
    """Rules by number. An alternative is a list of symbols: TERMINAL, EMPTY, or the number of a rule."""

    def __init__(self) -> None:
        self.alternatives: dict[int, list[list[int]]] = {}
        self.size = 0  # elements in llama.cpp's memory, about
        self.symbols = 0  # rules there, with those it makes of parentheses and repetitions
        self._count = 0
        self._names: dict[str, int] = {}
        self._used: dict[int, int] = {}  # rule → where it was first named
        self._repeats: list[tuple[int, int]] = []  # symbols that are repeated, and where

    def number(self, name: str, offset: int) -> int:
        """The number of a named rule, defined or not yet."""
        if name not in self._names:
            self._names[name] = self.made()
            self._used[self._names[name]] = offset
        return self._names[name]

    def made(self) -> int:
        """A number for a new rule."""
        self.symbols += 1
        self._count += 1
        return self._count - 1

    def repeated(self, symbol: int, low: int, high: int | None, offset: int) -> int:
        """A rule for a repetition of a symbol."""
        if high is None or high > 1:
            self._repeats.append((symbol, offset))
        number = self.made()
        self.symbols += (1 if high is None else high - low) - 1
        self.alternatives[number] = [[symbol] if high != 0 else []] + ([[]] if low == 0 else [])
        return number

    def check(self, root: str, place: Callable[[int], str]) -> None:
        """Raise GrammarError for a rule missing, a root missing, left recursion, and what has too many ways to begin."""
        if root not in self._names or self._names[root] not in self.alternatives:
            raise GrammarError(f"the grammar has no rule {root}, which is where it begins; write {root} ::= …")
        for name, number in self._names.items():
            if number not in self.alternatives:
                raise GrammarError(f"the grammar at {place(self._used[number])}: there is no rule {name}")
        nullable = self._nullable()
        for symbol, offset in self._repeats:
            if symbol in nullable:
                raise GrammarError(f"the grammar at {place(offset)}: what is repeated may be empty, which never ends")
        self._check_beginnings({n: self._beginnings(n, nullable) for n in self.alternatives})

    def _nullable(self) -> set[int]:
        """The rules that may be empty: a worklist, linear in the size of the grammar."""
        waiting: dict[int, list[list[int]]] = defaultdict(list)  # rule → alternatives, [how many are missing, whose]
        out: set[int] = set()
        todo: list[int] = []
        for number, found in self.alternatives.items():
            for symbols in found:
                if TERMINAL in symbols:
                    continue
                needs = [s for s in symbols if s != EMPTY]
                state = [len(needs), number]
                for symbol in needs:
                    waiting[symbol].append(state)
                if not needs:
                    todo.append(number)
        while todo:
            if (number := todo.pop()) in out:
                continue
            out.add(number)
            for state in waiting[number]:
                state[0] -= 1
                if state[0] == 0:
                    todo.append(state[1])
        return out

    def _beginnings(self, number: int, nullable: set[int]) -> tuple[list[int], int]:
        """Rules that a rule may begin with, one entry a way, and how many other ways it has."""
        rules, others = [], 0
        for symbols in self.alternatives[number]:
            for symbol in symbols:
                if symbol >= 0:
                    rules.append(symbol)
                if (symbol >= 0 and symbol in nullable) or symbol == EMPTY:
                    continue
                others += symbol == TERMINAL
                break
            else:
                others += 1
        return rules, others

    def _check_beginnings(self, beginnings: dict[int, tuple[list[int], int]]) -> None:
        """Walk depth first without recursion; a rule met again on the way down begins with itself."""
        names = {number: name for name, number in self._names.items()}
        ways: dict[int, int] = {}
        chain: dict[int, int] = {}
        on_path: dict[int, int] = {}  # rule → which of its beginnings is next
        for start in beginnings:
            stack = [start] if start not in ways else []
            while stack:
                number = stack[-1]
                rules, others = beginnings[number]
                i = on_path.setdefault(number, 0)
                if i < len(rules):
                    on_path[number] += 1
                    if (below := rules[i]) in on_path:
                        name = next((names[n] for n in reversed(stack) if n in names), "root")
                        raise GrammarError(f"the grammar's rule {name} begins with itself (left recursion), which never ends")
                    if below not in ways:
                        stack.append(below)
                    continue
                ways[number] = others + sum(ways[r] for r in rules)
                chain[number] = 1 + max((chain[r] for r in rules), default=0)
                if ways[number] > MAX_WAYS or chain[number] > MAX_CHAIN:
                    raise GrammarError(
                        f"the grammar has a rule with {ways[number]} ways to begin over {chain[number]} rules; "
                        f"at most {MAX_WAYS} and {MAX_CHAIN} are taken, so it needs fewer alternatives"
                    )
                del on_path[number]
                stack.pop()
