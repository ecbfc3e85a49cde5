r"""Answers as models write them beside references as data sets have them: GSM8K, MATH, Minerva,
OlympiadBench, AIME, AMC. One line a pair, `answer | reference`; several references are separated
by `||`, and all of them are then wanted.

Judged in the tables' own process: none of them keeps computer algebra busy.
"""

import pytest

from cipo_jax.verify.answers.judging import fast_path, judge
from cipo_jax.verify.verdict import MathReference, Status

RIGHT, WRONG = Status.RIGHT, Status.WRONG

EQUAL = r"""
18.00 | 18
\$18 | 18
18 \text{ dollars} | 18
70{,}000 | 70000
1\,000\,000 | 1000000
10~000 | 10000
\mathbf{18} | 18
\bf 18 | 18
{{{18}}} | 18
**18** | 18
+5 | 5
-0 | 0
18\% | 18\%
\binom{5}{2} | 10
{5 \choose 2} | 10
10! | 3628800
2^{31}-1 | 2147483647
13 \cdot 5 | 65
\tfrac12 | 1/2
\frac 12 | \frac12
\frac{1}{-2} | -\frac{1}{2}
\frac{-1}{-2} | \frac12
{1\over2} | \frac12
-3\frac{1}{4} | -\frac{13}{4}
7/3 | 2\frac{1}{3}
0.1\overline{6} | \frac16
0.\bar{3} | \frac13
0.\dot{3} | \frac13
0.\dot{1}4285\dot{7} | \frac17
0.\overline{9} | 1
66\frac{2}{3}\% | \frac{2}{3}
12\frac{1}{2}\% | 12.5\%
0.5x | \frac{x}{2}
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}}
2+\sqrt{3} | \frac{1}{2-\sqrt3}
\sqrt{5+2\sqrt{6}} | \sqrt2+\sqrt3
\sqrt[3]{16} | 2\sqrt[3]{2}
3^{\frac12} | \sqrt{3}
1414.21356237 | 1000\sqrt{2}
2pi | 2\pi
pi/4 | \frac{\pi}{4}
2*sqrt(2) | 2\sqrt{2}
x**2+1 | x^2+1
\ln 4 | 2\ln 2
\log_2 8 | 3
\log_2 3 | \frac{\ln 3}{\ln 2}
\sin 30^\circ | \frac12
\tan(15^{\circ}) | 2-\sqrt{3}
\cos 36^\circ | \frac{1+\sqrt5}{4}
\arctan 1 | \frac{\pi}{4}
\lfloor 3.7 \rfloor | 3
\left|-3\right| | 3
(1+i)^2 | 2i
\frac{1}{2}+\frac{\sqrt{3}}{2}i | \frac{1+i\sqrt3}{2}
(0.5,2) | (\frac12,2)
(3,\frac{\pi}{2}) | \left( 3, \frac{\pi}{2} \right)
\langle 1,2\rangle | (1,2)
(x,y)=(1,2) | (1,2)
x \in [-2,7] | [-2,7]
-2 \leq x \leq 7 | x\in[-2,7]
(12,102)\cup(2,12) | (2,12)\cup(12,102)
]0,1[ | (0,1)
[0,1[ | [0,1)
x\neq 0 | (-\infty,0)\cup(0,\infty)
\mathbb{R}\setminus\{0\} | (-\infty,0)\cup(0,\infty)
\{x \mid x > 3\} | (3,\infty)
\{x \in \mathbb{R} : x \ge 3\} | [3,\infty)
\{1\}\cup[2,3] | [2,3]\cup\{1\}
1 \text{ and } 2 | 1, 2
x \in \{1,2\} | 1,2
\begin{bmatrix}1&2\\3&4\end{bmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\left(\begin{array}{cc}1&2\\3&4\end{array}\right) | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
(x-1)(x+1) | x^2-1
\frac{n(n+1)}{2} | \frac{n^2+n}{2}
2\cdot2^n | 2^{n+1}
\frac{\pi}{2}+2k\pi | \frac{\pi}{2}+2\pi k
f(x)=2x+1 | f(x) = 1+2x
2x+1 | f(x) = 2x+1
2x+3 | y=2x+3
5 | AB = 5
5 | \text{Area} = 5
5 | a_{10} = 5
0 | \angle A = 0
\frac12 | P(X) = \frac12
2x-y+3=0 | y=2x+3
2x+2y=6 | x+y=3
x^2+y^2-2x-4y-4=0 | (x-1)^2+(y-2)^2=9
\frac{x^2}{4}+y^2=1 | x^2+4y^2=4
x = \frac{10}{2} = 5 | 5
\sqrt{2}\sqrt{3}=\sqrt{6} | \sqrt{6}
\text{Area} = 5\text{ cm}^2 | 5
\angle A = 30^\circ | 30^\circ
P(X=1)=\frac12 | \frac12
\textbf{Evelyn} | \text{Evelyn}
evelyn | \text{Evelyn}
\text{6:00 PM} | 6:00 PM
\text{3:45} | 3:45
6{:}30 | 6:30
\text{1010}_2 | 1010_2
2143_{5} | 2143_5
1:2:3 | 2:4:6
3:4 | \frac34
(B) | B
B. | \text{(B)}
B) | (B)
\textbf{(B)}\ 12 | B
(B) 12 | \text{(B)}
(B)\ -3 | B
6.02e23 | 6.02\times10^{23}
3\times10^{-5} | 0.00003
45\text{ degrees} | 45^\circ
5 \text{ inches} | 5 \text{ in}
5 \text{ square units} | 5
2,1 | 1 || 2
\{1,2\} | 1 || 2
x \in \{1,2\} | 1 || 2
x_1=1, x_2=2 | 1 || 2
0,\pm1 | 0 || 1 || -1
(1,2) \text{ and } (3,4) | (1,2) || (3,4)
"""

DIFFERENT = r"""
181 | 18
1 8 | 18
1,8 | 18
0.18 | 18
18! | 18
1800 | 18
\frac{18}{2} | 18
17,18 | 18
17 \text{ or } 18 | 18
18 \text{ or } 17 | 18
18\text{ or17} | 18
18\text{ (or }17) | 18
18 \text{ (alternatively } 17\text{)} | 18
18\text{ is wrong} | 18
\text{not }18 | 18
17\lor18 | 18
17\quad 18 | 18
17 \\ 18 | 18
17, 18 | 18
17;18 | 18
17、18 | 18
17 或 18 | 18
17-18 | 18
18 \pm 1 | 18
[17,18] | 18
x \in \{17,18\} | 18
\begin{cases}17\\18\end{cases} | 18
17=18 | 18
x=17=18 | 18
6=18 | 6
17\implies18 | 17
x<18 | 18
x\ne18 | 18
\le 18 | 18
18, \ldots | 18
1,\ldots,18 | 18
18... | 18
18… | 18
\textcolor{white}{17}18 | 17
\phantom{17}18 | 17
0.333 | 1/3
0.3333333333333 | \frac{2}{2\cdot 3}
0.\overline{3} | 0.33
(0.3333333,1) | (\frac13,1)
(1.414214,1) | (\sqrt2,1)
[0.3333333,1] | [\frac13,1]
0.3333333,1 | \frac13,1
\begin{pmatrix}0.3333333\\1\end{pmatrix} | \begin{pmatrix}\frac13\\1\end{pmatrix}
1\frac12 | \frac12
0.5\% | \frac12
0.3333333\% | \frac13\%
3.14 | \pi
\frac{22}{7} | \pi
\frac{355}{113} | \pi
\pi^4+\pi^5 | e^6
e^{\pi\sqrt{163}} | 262537412640768744
\sqrt{10^{40}+1} | 10^{20}
\sin(10^{-8}) | 10^{-8}
1.5 | \frac{3}{2}+10^{-12}
10^{50}+1 | 10^{50}
18446744073709551615 | 2^{64}
100!+1 | 100!
2^{-100} | 0
x+0.0000001 | x
3.1415927r^2 | \pi r^2
\sin 40^\circ | \sin 40
\tan 15^\circ | 2+\sqrt3
(2,1) | (1,2)
\{1,2\} | (1,2)
(1,2) | [1,2]
[1,2) | (1,2]
(1,2) | 1.2
[0,1] | ]0,1[
[0,1] | (0,1)\cup\{0\}
(1,2)\cup(2,3) | (1,3)
\infty | -\infty
\emptyset | 0
\mathbb{R} | 5
\pm3 | 3
3 | \pm 3
(1,4),(2,3) | (2,3)
\begin{pmatrix}1&3\\2&4\end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\begin{vmatrix}1&2\\3&4\end{vmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
1-x | x-1
2^n | n^2
\frac{\pi}{2}+k\pi | \frac{\pi}{2}+2k\pi
6-9i | 6+9i
y=2x+4 | y=2x+3
2y=2x+3 | y=2x+3
x^2+y^2-2x-4y-5=0 | (x-1)^2+(y-2)^2=9
y=5 | x=5
0 | 2x-y+3=0
3 | x+y=3
9 | (x-1)^2+(y-2)^2=9
1 | xy=1
\text{Evan} | \text{Evelyn}
\text{nylevE} | \text{Evelyn}
\text{Evelyn or Evan} | \text{Evelyn}
\text{ellipsoid} | \text{ellipse}
A | B
(A), (B) | A
(A)(B) | A
(A) or (B) | A
(A) (B) | A
(A) \text{ or } B | A
A/B | A
(A) - 1 | A
(A) = 3 | A
2143 | 2144_5
2143_6 | 2143_5
0.5_2 | 0.5
3:54 | 3:45
4:3 | 3:4
1:2:3 | 1:3:2
1:2 | 1:2:3
5 \text{ m} | 5 \text{ cm}
5 \text{ m} | 5 \text{ miles or } 6
46^\circ | 45^\circ
6.02\times10^{22} | 6.02\times10^{23}
1,2,3 | 1 || 2
1,1 | 1 || 2
1,2 \text{ or } 3 | 1 || 2
\pm 1 | 1 || 2
x=x | 5
0=0 | 5
x+1=x+1 | 5
x | 5
0/0 | 5
\frac{5}{0} | \infty
\infty-\infty | 5
nan | 5
\text{NaN} | 5
oo | 5
\forall x | 5
= | 5
\{\} | 5
.* | 5
? | 5
\square | 5
\text{} | 5
\text{any} | 5
True | 5
\top | 5
5+C | 5
5\pmod 7 | 12
"""


def pairs(table: str) -> list[tuple[str, MathReference]]:
    found = []
    for line in table.strip().split("\n"):
        answer, gold = line.split(" | ")
        golds = tuple(part.strip() for part in gold.split("||"))
        found.append(
            (answer, MathReference(answers=tuple(filter(None, golds)), all_of=len(golds) > 1))
        )
    return found


def said(answer: str) -> str:
    thought = "<think>\nMaybe \\boxed{-7}?\n</think>\n\n"
    return f"{thought}**Final Answer**\n\\[\n\\boxed{{{answer}}}\n\\]"


@pytest.mark.parametrize(("answer", "reference"), pairs(EQUAL))
def test_equal(answer: str, reference: MathReference) -> None:
    assert judge(said(answer), reference).status is RIGHT


@pytest.mark.parametrize(("answer", "reference"), pairs(DIFFERENT))
def test_different(answer: str, reference: MathReference) -> None:
    assert judge(said(answer), reference).status is WRONG


def test_the_fast_path_agrees() -> None:
    settled = 0
    for answer, reference in pairs(EQUAL):
        settled += fast_path(said(answer), reference) is not None
    assert settled > 40
    assert not any(fast_path(said(answer), reference) for answer, reference in pairs(DIFFERENT))
