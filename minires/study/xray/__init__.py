"""The residual X-ray: where gradients come from, block by block and path by path, and what a cut does to the loss.

    report = xray(Order("resnet56"))        # a dict of JSON values: the network, and its plain twin
    write_xray(report, "xray/resnet56")     # xray.html, xray.json and the figures

Reading order: gradients (identity and branch, path lengths), lesions, activity (the forward pass), subject (what is looked
at), report (all of it together), findings and page (what is said about it).
"""
from minires.study.xray.activity import effective_rank, observe
from minires.study.xray.gradients import backward_norms, decompose
from minires.study.xray.lesions import lesion, lesion_study
from minires.study.xray.page import write_xray
from minires.study.xray.report import Order, xray
from minires.study.xray.subject import plain_twin

__all__ = ["Order", "backward_norms", "decompose", "effective_rank", "lesion", "lesion_study", "observe", "plain_twin",
           "write_xray", "xray"]
