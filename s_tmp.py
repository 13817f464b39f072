import time
from tests.sim.search import search
from colo.membership.member import Means
for means in (Means(),Means(fence=True),Means(asks=False),Means(automatic=False)):
  for f in (1,2,3,4):
    t=time.time(); r=search(means,f); print(means.automatic,means.asks,means.fence,f,r.states,r.steps,round(time.time()-t,1)); 
    if r.violation: print(r.violation); print("\n".join(r.path)); break
