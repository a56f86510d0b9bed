# temporary: replaced by the compiled ops
import torch
def group_advantage(rewards, groups, *, baseline="mean", scale="std", eps=1e-4, **kw):
    r = rewards.float().view(-1, groups)
    a = r - r.mean(1, keepdim=True)
    if scale == "std":
        a = a / (r.std(1, keepdim=True) + eps)
    return a.view(-1)
def token_logprob(logits, targets, *, temperature=1.0, entropy=False, ignore_index=-100, inplace_backward=False):
    x = torch.log_softmax(logits.float() / temperature, -1)
    keep = targets != ignore_index
    lp = x.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1) * keep
    if entropy:
        return lp, -(x.exp() * x).sum(-1) * keep
    return lp
def policy_loss(logp, old_logp, advantages, mask, *, kind="grpo", clip=(0.2, 0.2), ref_logp=None, kl_coef=0.0, kl="k3", normalizer="token"):
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    m = mask.float()
    r = torch.exp((logp - old_logp) * m)
    loss = -torch.minimum(r * advantages, r.clamp(1 - clip[0], 1 + clip[1]) * advantages)
    met = {"clip_fraction": ((r - r.clamp(1 - clip[0], 1 + clip[1])).abs() > 0).float().mean().detach(), "ratio_mean": r.mean().detach(), "ratio_max": r.max().detach()}
    if kl_coef:
        d = (ref_logp - logp) * m
        loss = loss + kl_coef * (d.exp() - d - 1)
    return (loss * m).sum() / m.sum(), met
