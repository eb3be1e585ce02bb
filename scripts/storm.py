#!/usr/bin/env python3
"""Random users on both sides of a real `driftless sync`, then: are both trees equal, and is every version there that
nobody who had seen it replaced or removed?

    cargo build --release && scripts/storm.py SEED stopped|live|kill|full|eacces [ROUNDS]

stopped: operations between runs with --once. live: while it runs. kill: with SIGKILL every second. full: one tree is on
a small ext4 in a loop image, which is filled up again and again, and freed; sometimes with SIGKILL while it is full. Needs
root and loop devices; says so and exits with 77 otherwise. eacces: permissions of directories and files are taken away and given
back; root becomes nobody for this. Needs rsync for the comparison. Prints `ok ...`, or `FAIL ...` and leaves the trees for a look. Set DRIFTLESS to try another binary.
"""
import os,subprocess,sys,time,shutil,random,tempfile,atexit,ctypes
seed=int(sys.argv[1]); mode=sys.argv[2]; rounds=int(sys.argv[3]) if len(sys.argv)>3 else 6
D=os.environ.get("DRIFTLESS","target/release/driftless")
D=os.path.abspath(D)
NOBODY=65534
if mode=="eacces" and os.geteuid()==0:
    os.setgroups([]); os.setresgid(NOBODY,NOBODY,NOBODY); os.setresuid(NOBODY,NOBODY,NOBODY)
R=os.path.join(tempfile.gettempdir(),f"driftless-storm-{mode}-{seed}"); shutil.rmtree(R,ignore_errors=True)
SMALL=R+"/small"                   # where the small file system is mounted
A,B=R+"/a",(SMALL if mode=="full" else R)+"/b"
TREE_BYTES=4<<20; SMALL_BYTES=24<<20 # what users keep in a tree, with room for copies, staging and limbo
os.makedirs(A)
def sh(*command): return subprocess.run(command,capture_output=True,text=True)
def small():
    """A small file system at SMALL, until this ends."""
    os.makedirs(SMALL); image=R+"/image"
    with open(image,"wb") as f: f.truncate(SMALL_BYTES)
    for command in (["mkfs.ext4","-q","-F","-m","0",image],["mount","-o","loop",image,SMALL]):
        done=sh(*command)
        if done.returncode: print("skipped:",done.stderr.strip()); sys.exit(77)
    atexit.register(sh,"umount","-l",SMALL)
if mode=="full":
    if os.geteuid()!=0 or not os.path.exists("/dev/loop-control") or not shutil.which("mkfs.ext4"):
        print("skipped: needs root, loop devices and mkfs.ext4"); sys.exit(77)
    small()
os.makedirs(B)
rnd=random.Random(seed)
n=0
log=open(R+"/log","w")
written={}  # content -> (side)   every closed version
killed=set() # content knowingly overwritten/removed by a user that saw it
libc=ctypes.CDLL(None,use_errno=True)
def move(p,q):
    """A rename that replaces nothing: what has come to be there since the user looked he has not seen."""
    AT_FDCWD,RENAME_NOREPLACE=-100,1
    if libc.renameat2(AT_FDCWD,os.fsencode(p),AT_FDCWD,os.fsencode(q),RENAME_NOREPLACE):
        raise OSError(ctypes.get_errno(),"rename",p)
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
    global n; n+=1; name=f"v{seed}-{n}"
    return name+" "+"x"*rnd.choice([0,100,5_000,60_000,200_000]) if mode=="full" else name
def short(c): return c and c[:24]
tk=0
for side in (A,B): os.makedirs(side+"-trash",exist_ok=True)
def used(root):
    total=0
    for f in files(root):
        try: total+=os.lstat(f).st_size
        except OSError: pass
    return total
def say(*what):
    log.write("%.3f USER %s\n"%(time.time()%1000," ".join(str(w) for w in what).replace(R+"/",""))); log.flush()
def take(p):
    say("take",p,short(read(p)))
    global tk; tk+=1; t=(A if p.startswith(A+"/") else B)+"-trash/"+str(tk)
    os.rename(p,t)
    if mode=="eacces": os.chmod(t,0o600)
    killed.add(read(t)); os.unlink(t)
def write(p,c,root):
    """A version that could not be written whole is none."""
    with open(p,"x") as f: f.write(c)
    written[c]=root
def step(root):
    try:
        op=rnd.choice(["create"]*4+["over"]*3+["save"]*2+["mv"]*3+["mvdir"]*2+["rm"]*2+["mkdir"]*2+["rmr","ln","chmod","mvover","touchdir"])
        fs=files(root); ds=dirs(root)
        if mode=="full" and op in ("create","over","save") and used(root)>TREE_BYTES: op="rm"
        name=lambda: rnd.choice("abcdefgh")
        if op=="create":
            p=os.path.join(rnd.choice(ds),name())
            if os.path.lexists(p): return
            c=new(); say(op,p,short(c)); write(p,c,root)
        elif op=="over" and fs:
            p=rnd.choice(fs); c=new()
            with open(p,"r+") as f:
                old=f.read(); killed.add(old); f.seek(0); f.truncate(0); f.write(c)
            written[c]=root; say(op,p,short(c),"over",short(old))
        elif op=="save" and fs:
            p=rnd.choice(fs); t=p+".tmp"; c=new(); say(op,p,short(c)); write(t,c,root)
            take(p); move(t,p)
        elif op=="mv" and fs:
            p=rnd.choice(fs); q=os.path.join(rnd.choice(ds),name())
            if os.path.lexists(q): return
            say(op,p,q); move(p,q)
        elif op=="mvover" and len(fs)>1:
            p,q=rnd.sample(fs,2); 
            if os.path.samefile(p,q): return
            say(op,p,q); take(q); move(p,q)
        elif op=="mvdir" and len(ds)>1:
            p=rnd.choice(ds[1:]); q=os.path.join(rnd.choice(ds),name())
            if q.startswith(p+"/") or os.path.lexists(q): return
            say(op,p,q); move(p,q)
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
    r=subprocess.run([D,"sync","--once","-v","--state",R+"/st",A,B],capture_output=True,text=True,timeout=400) # it may be suspended for minutes
    return r
def fill():
    """Takes all room there is on the small file system, or all but a little."""
    left=rnd.choice([0,0,4096,65536])
    with open(SMALL+"/fill","ab",buffering=0) as f:
        for size in (1<<20,4096,1):
            try:
                while True: f.write(b"x"*size)
            except OSError: pass
        f.truncate(max(f.tell()-left,0))
    say("full but for",left)
def free():
    try: os.unlink(SMALL+"/fill"); say("free")
    except FileNotFoundError: pass
taken=[]
def take_away():
    """Takes permissions away from a directory or file of one side."""
    root=rnd.choice([A,B]); some=dirs(root)[1:] if rnd.random()<.7 else files(root)
    if not some: return
    try: p=rnd.choice(some); fd=os.open(p,os.O_RDONLY)
    except OSError: return
    was=os.fstat(fd).st_mode&0o7777; now=rnd.choice([0o000,0o555,0o444]); os.fchmod(fd,now)
    taken.append((fd,was)); say("take away",p,oct(now))
def give_back():
    while taken:
        fd,was=taken.pop(); os.fchmod(fd,was); os.close(fd)
    say("gave back")
def give_all_back():
    """What went to the other side, or was copied, while it was taken away."""
    give_back()
    for root in (A,B):
        for _ in range(100): # below what was opened there may be more
            closed=[d for d in dirs(root) if bits(d)&0o700!=0o700]
            for d in closed: chmod(d,0o755)
            if not closed: break
        for f in files(root):
            if bits(f)&0o600!=0o600: chmod(f,0o644)
def bits(p):
    try: return os.lstat(p).st_mode
    except OSError: return 0o777 # in a directory that is closed, or gone
def chmod(p,mode):
    try: os.chmod(p,mode)
    except OSError: pass
def fail(msg):
    log.write(r.stderr+r.stdout); log.flush()
    if mode=="full": sh("cp","-a",B,R+"/b") # the image goes
    print("FAIL",seed,mode,msg); sys.exit(1)

try:
    r=once()
    if mode=="stopped":
        for _ in range(rounds):
            for _ in range(rnd.randrange(1,15)): step(A)
            for _ in range(rnd.randrange(1,15)): step(B)
            r=once(); log.write(r.stderr+r.stdout)
            if r.returncode: fail(f"rc {r.returncode} {r.stderr[-600:]}")
            x=subprocess.run(["rsync","-aHAXSn","--delete","--checksum","--itemize-changes","--exclude",".driftless",A+"/",B+"/"],capture_output=True,text=True).stdout
            if x: fail("differ\n"+x)
    else:
        p=None
        def start(): return subprocess.Popen([D,"sync","-v","--max-delete","100%","--state",R+"/st",A,B],stdout=log,stderr=log)
        p=start()
        for _ in range(rounds):
            t=time.time()+ (1.0 if mode=="kill" else 0.7)
            if mode=="full": fill()
            middle=t-0.3
            while time.time()<t:
                if mode=="eacces" and rnd.random()<.05: take_away()
                if time.time()>middle:
                    middle=t
                    if mode=="full" and rnd.random()<.7: free()
                    if mode=="eacces": give_back()
                step(A) if rnd.random()<.5 else step(B); time.sleep(rnd.random()*0.02)
            if p.poll() is not None: fail(f"died {p.returncode}")
            if mode=="full" and rnd.random()<.2: p.kill(); p.wait(); say("killed"); p=start()
            if mode=="kill": p.kill(); p.wait(); say("killed")
            if mode=="kill" and rnd.random()<.5:
                for _ in range(5): step(A); step(B)
            if mode=="kill": p=start()
        if mode=="full": free()
        if mode=="eacces": time.sleep(0.5); give_all_back()
        time.sleep(1.0); p.terminate(); rc=p.wait(400)
        for _ in range(3 if mode=="eacces" else 1):
            if mode=="eacces": give_all_back() # what was still on its way
            r=once(); log.write(r.stderr+r.stdout)
        if r.returncode: fail(f"rc {r.returncode} {r.stderr[-600:]}")
except subprocess.TimeoutExpired: fail("hang")
x=subprocess.run(["rsync","-aHAXSn","--delete","--checksum","--itemize-changes","--exclude",".driftless",A+"/",B+"/"],capture_output=True,text=True).stdout
if x: fail("differ\n"+x)
have={read(f) for f in files(A)}
lost=[c for c in written if c not in killed and c not in have]
if lost: fail(f"LOST {lost}")
r=once()
if r.returncode or "0 entries" not in r.stderr+r.stdout: fail("second once: "+r.stderr+r.stdout)
if mode=="full": sh("umount",SMALL)
print("ok",seed,mode,len(written),"versions",len(have),"files", sum("conflict" in f for f in files(A)),"copies"); shutil.rmtree(R)
