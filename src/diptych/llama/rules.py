"""The rules of a grammar, reduced to which rule may begin with which: enough to see what llama.cpp would choke on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from diptych.errors import GrammarError
from diptych.llama.pattern import Ranges

EMPTY = -1  # a literal without characters; what is less takes characters
MAX_CHAIN = 1000  # rules that begin with one another: llama.cpp recurses along them
MAX_WAYS = 10_000  # to begin a rule: llama.cpp holds them all, and compares each with each
MAX_NEXT = 20_000  # ways to go on behind one character, of all ways to begin together: tens of milliseconds


class Rules:
    """Rules by number. An alternative is a list of symbols: the number of a rule, EMPTY, or -2 - i for `texts[i]`.

    A text is a sequence of sets of characters. `repeats` has the symbol and the bounds of a rule made of a repetition.
    """

    def __init__(self) -> None:
        self.alternatives: dict[int, list[list[int]]] = {}
        self.texts: list[tuple[Ranges, ...]] = []
        self.repeats: dict[int, tuple[int, int, int | None]] = {}
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

    def text(self, characters: tuple[Ranges, ...]) -> int:
        """The symbol of a text."""
        if not characters:
            return EMPTY
        self.texts.append(characters)
        return -1 - len(self.texts)

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
        self.repeats[number] = symbol, low, high
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
        ways = self._check_beginnings({n: self._beginnings(n, nullable) for n in self.alternatives})
        self._check_next(ways, nullable)

    def name(self, number: int) -> str:
        """The name of a rule, or of the one that a rule without a name belongs to."""
        named = {n: name for name, n in self._names.items()}
        while number not in named and number > 0:
            number -= 1
        return named.get(number, "root")

    def _nullable(self) -> set[int]:
        """The rules that may be empty: a worklist, linear in the size of the grammar."""
        waiting: dict[int, list[list[int]]] = defaultdict(list)  # rule → alternatives, [how many are missing, whose]
        out: set[int] = set()
        todo: list[int] = []
        for number, found in self.alternatives.items():
            for symbols in found:
                if any(symbol < EMPTY for symbol in symbols):
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
                others += symbol < EMPTY
                break
            else:
                others += 1
        return rules, others

    def _check_beginnings(self, beginnings: dict[int, tuple[list[int], int]]) -> dict[int, int]:
        """Walk depth first without recursion; a rule met again on the way down begins with itself.

        The ways to begin each rule; a rule stands behind those it begins with.
        """
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
        return ways

    def _check_next(self, ways: dict[int, int], nullable: set[int]) -> None:
        """Add up the ways to go on behind a first character: inside the rule, and behind what it may complete."""
        complete: dict[int, int] = {}  # ways to begin a rule that may be all of it
        inside: dict[int, int] = {}
        for number in ways:
            complete[number] = inside[number] = 0
            for symbols in self.alternatives[number]:
                again = symbols if number in self.repeats else []
                rest, may_end = sum(self._begun(s, ways, complete, inside)[0] for s in again), True
                done = within = 0
                for symbol in reversed(symbols):
                    begun, whole, more = self._begun(symbol, ways, complete, inside)
                    empty = symbol == EMPTY or symbol in nullable
                    within = more + whole * rest + (within if empty else 0)
                    done = (whole if may_end else 0) + (done if empty else 0)
                    rest, may_end = begun + (rest if empty else 0), may_end and empty
                complete[number] += done
                inside[number] += within
            if inside[number] > MAX_NEXT:
                raise GrammarError(
                    f"the grammar's rule {self.name(number)} has {inside[number]} ways to go on behind its first character; "
                    f"at most {MAX_NEXT} are taken, so it needs fewer parts that may be left out"
                )

    def _begun(self, symbol: int, *known: dict[int, int]) -> tuple[int, int, int]:
        """Of a symbol: its ways to begin, those that may be all of it, and the ways inside behind its first character.

        A rule that does not stand at a beginning may not be known yet, and needs its ways to begin alone.
        """
        if symbol >= 0:
            ways, complete, inside = (of.get(symbol, 0) for of in known)
            return ways, complete, inside
        if symbol == EMPTY:
            return 0, 0, 0
        longer = len(self.texts[-2 - symbol]) > 1
        return 1, not longer, longer
