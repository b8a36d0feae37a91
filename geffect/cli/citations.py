"""BibTeX of what a result rests on."""

from geffect.errors import GeffectError


def bibtex(method: str) -> str:
    """The entry of one method, or of all.

    Args:
        method: a key of `ENTRIES`, or ``all``.

    Returns:
        BibTeX.

    Raises:
        GeffectError: the method is unknown.
    """
    if method == "all":
        return "\n\n".join(ENTRIES.values())
    if method.lower() not in ENTRIES:
        raise GeffectError(f"a method among {', '.join(ENTRIES)}", repr(method), "choose one of these")
    return ENTRIES[method.lower()]


def _arxiv(key: str, title: str, identifier: str, year: int, authors: str) -> str:
    return (
        f"@article{{{key},\n  title   = {{{title}}},\n  author  = {{{authors}}},\n"
        f"  journal = {{arXiv preprint arXiv:{identifier}}},\n  year    = {{{year}}}\n}}"
    )


ENTRIES = {
    "geffect": "@software{geffect,\n  title  = {geffect: gradient diagnostics for language-model unlearning},\n"
    "  author = {{The geffect authors}},\n  year   = {2026}\n}",
    "g-effect": _arxiv(
        "wang2025geffect",
        "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
        "2502.19301",
        2025,
        "Qizhou Wang and Jin Peng Zhou and Zhanke Zhou and Saebyeol Shin and Bo Han and Kilian Q. Weinberger",
    ),
    "gru": _arxiv(
        "wang2025gru",
        "GRU: Mitigating the Trade-off between Unlearning and Retention for LLMs",
        "2503.09117",
        2025,
        "Yue Wang and Qizhou Wang and Feng Liu and Wei Huang and Yali Du and Xiaojiang Du and Bo Han",
    ),
    "grail": _arxiv(
        "kim2025grail",
        "GRAIL: Gradient-Based Adaptive Unlearning for Privacy and Copyright in LLMs",
        "2504.12681",
        2025,
        "Kun-Woo Kim and Ji-Hoon Park and Ju-Min Han and Seong-Whan Lee",
    ),
    "npo": _arxiv(
        "zhang2024npo",
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        "2404.05868",
        2024,
        "Ruiqi Zhang and Licong Lin and Yu Bai and Song Mei",
    ),
    "simnpo": _arxiv(
        "fan2024simnpo",
        "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        "2410.07163",
        2024,
        "Chongyu Fan and Jiancheng Liu and Licong Lin and Jinghan Jia and Ruiqi Zhang and Song Mei and Sijia Liu",
    ),
    "rmu": _arxiv(
        "li2024wmdp",
        "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning",
        "2403.03218",
        2024,
        "Nathaniel Li and others",
    ),
    "knowundo": _arxiv(
        "tian2024knowundo",
        "To Forget or Not? Towards Practical Knowledge Unlearning for Large Language Models",
        "2407.01920",
        2024,
        "Bozhong Tian and others",
    ),
    "tofu": _arxiv(
        "maini2024tofu",
        "TOFU: A Task of Fictitious Unlearning for LLMs",
        "2401.06121",
        2024,
        "Pratyush Maini and Zhili Feng and Avi Schwarzschild and Zachary C. Lipton and J. Zico Kolter",
    ),
}
