#!/usr/bin/env python3
"""Random users on both sides of a real `driftless sync`, then: are both trees equal, and is every version there that
nobody who had seen it replaced or removed?

    cargo build --release && scripts/storm.py SEED stopped|live|kill [ROUNDS]

stopped: operations between runs with --once. live: while it runs. kill: with SIGKILL every second. Needs rsync for
the comparison. Prints `ok ...`, or `FAIL ...` and leaves the trees for a look. Set DRIFTLESS to try another binary.
"""
import os,subprocess,sys,time,shutil,random,tempfile
seed=int(sys.argv[1]); mode=sys.argv[2]; rounds=int(sys.argv[3]) if len(sys.argv)>3 else 6
D=os.environ.get("DRIFTLESS","target/release/driftless")
D=os.path.abspath(D)
R=os.path.join(tempfile.gettempdir(),f"driftless-storm-{seed}"); shutil.rmtree(R,ignore_errors=True); os.makedirs(R+"/a"); os.makedirs(R+"/b")
rnd=random.Random(seed)
n=0
log=open(R+"/log","w")
written={}  # content -> (side)   every closed version
killed=set() # content knowingly overwritten/removed by a user that saw it
def dirs(root):
    out=[root]
    for d,ds,fs in os.walk(root):
        if ".driftless" in ds: ds.remove(".driftless")
        out+= [os.path.join(d,x) for x in ds]
    return out
def files(root):
    out=[]
    for d,ds,fs in os.walk(root):
        if ".driftless" in ds: ds.remove(".driftless")
        out+=[os.path.join(d,x) for x in fs]
    return out
def read(p):
    try:
        with open(p) as f: return f.read()
    except Exception: return None
def new():
    global n; n+=1; return f"v{seed}-{n}"
tk=0
os.makedirs(R+"/trash",exist_ok=True)
def say(*what):
    log.write("%.3f USER %s\n"%(time.time()%1000," ".join(str(w) for w in what).replace(R+"/",""))); log.flush()
def take(p):
    say("take",p,read(p))
    global tk; tk+=1; t=R+"/trash/"+str(tk)
    os.rename(p,t); killed.add(read(t))
def step(root):
    try:
        op=rnd.choice(["create"]*4+["over"]*3+["save"]*2+["mv"]*3+["mvdir"]*2+["rm"]*2+["mkdir"]*2+["rmr","ln","chmod","mvover","touchdir"])
        fs=files(root); ds=dirs(root)
        name=lambda: rnd.choice("abcdefgh")
        if op=="create":
            p=os.path.join(rnd.choice(ds),name())
            if os.path.lexists(p): return
            c=new(); say(op,p,c); open(p,"x").write(c); written[c]=root
        elif op=="over" and fs:
            p=rnd.choice(fs); c=new()
            with open(p,"r+") as f:
                old=f.read(); f.seek(0); f.truncate(0); f.write(c)
            killed.add(old); written[c]=root; say(op,p,c,"over",old)
        elif op=="save" and fs:
            p=rnd.choice(fs); t=p+".tmp"; c=new(); say(op,p,c); open(t,"x").write(c); written[c]=root
            take(p); os.rename(t,p)
        elif op=="mv" and fs:
            p=rnd.choice(fs); q=os.path.join(rnd.choice(ds),name())
            if os.path.lexists(q): return
            say(op,p,q); os.rename(p,q)
        elif op=="mvover" and len(fs)>1:
            p,q=rnd.sample(fs,2); 
            if os.path.samefile(p,q): return
            say(op,p,q); take(q); os.rename(p,q)
        elif op=="mvdir" and len(ds)>1:
            p=rnd.choice(ds[1:]); q=os.path.join(rnd.choice(ds),name())
            if q.startswith(p+"/") or os.path.lexists(q): return
            say(op,p,q); os.rename(p,q)
        elif op=="rm" and fs:
            p=rnd.choice(fs); take(p)
        elif op=="mkdir":
            p=os.path.join(rnd.choice(ds),name())
            if not os.path.lexists(p): os.mkdir(p)
        elif op=="rmr" and len(ds)>1:
            p=rnd.choice(ds[1:]); say(op,p)
            for f in files(p): 
                take(f)
            for d,ds,fs2 in os.walk(p,topdown=False): os.rmdir(d)
        elif op=="ln" and fs:
            p=rnd.choice(fs); q=os.path.join(rnd.choice(ds),name())
            if not os.path.lexists(q): say(op,p,q); os.link(p,q)
        elif op=="chmod" and fs:
            os.chmod(rnd.choice(fs),rnd.choice([0o644,0o600,0o755]))
        elif op=="touchdir" and len(ds)>1:
            p=rnd.choice(ds[1:]); s=rnd.randrange(2_000_000_000); say(op,p,s); os.utime(p,(s,s))
    except (FileNotFoundError,FileExistsError,NotADirectoryError,IsADirectoryError,OSError) as e:
        pass
def once():
    r=subprocess.run([D,"sync","--once","-v","--state",R+"/st",R+"/a",R+"/b"],capture_output=True,text=True,timeout=60)
    return r
def fail(msg):
    log.write(r.stderr+r.stdout); log.flush()
    print("FAIL",seed,mode,msg); sys.exit(1)

try:
    r=once()
    if mode=="stopped":
        for _ in range(rounds):
            for _ in range(rnd.randrange(1,15)): step(R+"/a")
            for _ in range(rnd.randrange(1,15)): step(R+"/b")
            r=once(); log.write(r.stderr+r.stdout)
            if r.returncode: fail(f"rc {r.returncode} {r.stderr[-600:]}")
            x=subprocess.run(["rsync","-aHAXSn","--delete","--checksum","--itemize-changes","--exclude",".driftless",R+"/a/",R+"/b/"],capture_output=True,text=True).stdout
            if x: fail("differ\n"+x)
    else:
        p=None
        def start(): return subprocess.Popen([D,"sync","-v","--max-delete","100%","--state",R+"/st",R+"/a",R+"/b"],stdout=log,stderr=log)
        p=start()
        for _ in range(rounds):
            t=time.time()+ (1.0 if mode=="kill" else 0.7)
            while time.time()<t:
                step(R+"/a") if rnd.random()<.5 else step(R+"/b"); time.sleep(rnd.random()*0.02)
            if p.poll() is not None: fail(f"died {p.returncode}")
            if mode=="kill": p.kill(); p.wait(); say("killed")
            if mode=="kill" and rnd.random()<.5:
                for _ in range(5): step(R+"/a"); step(R+"/b")
            if mode=="kill": p=start()
        time.sleep(1.0); p.terminate(); rc=p.wait(20)
        r=once(); log.write(r.stderr+r.stdout)
        if r.returncode: fail(f"rc {r.returncode} {r.stderr[-600:]}")
except subprocess.TimeoutExpired: fail("hang")
x=subprocess.run(["rsync","-aHAXSn","--delete","--checksum","--itemize-changes","--exclude",".driftless",R+"/a/",R+"/b/"],capture_output=True,text=True).stdout
if x: fail("differ\n"+x)
have={read(f) for f in files(R+"/a")}
lost=[c for c in written if c not in killed and c not in have]
if lost: fail(f"LOST {lost}")
r=once()
if r.returncode or "0 entries" not in r.stderr+r.stdout: fail("second once: "+r.stderr+r.stdout)
print("ok",seed,mode,len(written),"versions",len(have),"files", sum("conflict" in f for f in files(R+"/a")),"copies"); shutil.rmtree(R)
