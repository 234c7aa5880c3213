package worker

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"sync"

	"hsmbridge/hsm"
	"hsmbridge/hsm/isolation"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// maxCalls is how many calls may be under way at once: hsmbridge asks for no more than the token has sessions.
const maxCalls = 1024

// process is the module's process and its one token.
type process struct {
	conn *wire.Conn
	page []byte // where a PIN arrives

	pins  chan []byte // nil: none is given
	ended chan int    // the exit code

	mu      sync.Mutex
	opening bool
	wanting wire.Kind // what answers the question for a PIN: it, or that the login at the device may begin; 0: nothing was asked
	noPIN   error
	token   *hsm.Token
	slots   chan struct{} // one for each session
	turn    chan struct{} // closed when the last call that came has its session, or wants none any more
	running map[uint64]context.CancelFunc
}

func newProcess() (*process, error) {
	f, err := socket()
	if err != nil {
		return nil, err
	}
	page, err := isolation.LockedPage(os.Getpagesize())
	if err != nil {
		return nil, err
	}
	const room = 16 << 10 // for several requests
	buf, err := isolation.LockedPage(room)
	if err != nil {
		return nil, err
	}
	return &process{conn: wire.NewConn(&inbox{f: f, buf: buf}, f, wire.MaxRequest), page: page, pins: make(chan []byte, 1), ended: make(chan int, 1), running: map[uint64]context.CancelFunc{}}, nil
}

// serve receives until the socket is closed or speaks another language. The process then ends without asking the module: it may hang. A call is
// carried out where it was received, while another goroutine receives what comes next: to wake another thread for the call first would make each
// longer.
func (p *process) serve() {
	for {
		h, err := p.conn.Next()
		var do func()
		if err == nil {
			do, err = p.receive(h)
		}
		switch {
		case errors.Is(err, wire.ErrMalformed):
			p.ended <- exitBad
			return
		case err != nil:
			p.ended <- exitGone
			return
		case do != nil:
			go p.serve()
			do()
			return
		}
	}
}

// receive takes a frame's payload and begins what it asks for, or gives what does: a call, which takes its time.
func (p *process) receive(h wire.Header) (func(), error) {
	var buf []byte
	if h.Kind == wire.KindPIN {
		buf = p.page
	}
	payload, err := p.conn.Payload(h, buf)
	if err != nil {
		clear(buf) // half a PIN is one too
		return nil, err
	}
	switch h.Kind {
	case wire.KindOpen:
		return nil, p.open(payload)
	case wire.KindPIN:
		return nil, p.answerPIN(wire.KindPIN, payload, nil)
	case wire.KindLogIn:
		if err := empty(payload); err != nil {
			return nil, err
		}
		return nil, p.answerPIN(wire.KindLogIn, nil, nil)
	case wire.KindNoPIN:
		var why wire.Text
		if err := wire.Decode(payload, &why); err != nil {
			return nil, err
		}
		return nil, p.answerPIN(wire.KindNoPIN, nil, errors.New(why.Text))
	case wire.KindCall:
		return p.call(h, payload)
	case wire.KindCancel:
		p.mu.Lock()
		cancel := p.running[h.Call]
		p.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: a frame of kind %d", wire.ErrMalformed, h.Kind)
	}
}

func (p *process) open(payload []byte) error {
	var o wire.Open
	if err := wire.Decode(payload, &o); err != nil {
		return err
	}
	u, err := pkcs11uri.Parse(o.URI)
	c := hsm.Config{Name: o.Name, Module: o.Module, Parameters: o.Parameters, URI: u, LoginAgain: o.LoginAgain, AtDevice: p.askAtDevice}
	if err == nil && o.Quirks != "" {
		err = json.Unmarshal([]byte(o.Quirks), &c.Quirks)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || p.opening {
		return fmt.Errorf("%w: opened twice, or a bad URI or quirks", wire.ErrMalformed)
	}
	p.opening = true
	go func() {
		t, err := hsm.Open(context.Background(), c, p.askPIN)
		clear(p.page)
		if err != nil {
			p.send(wire.KindFailed, 0, wire.FailureOf(err))
			return
		}
		p.mu.Lock()
		p.token, p.slots, p.turn = t, make(chan struct{}, t.Sessions()), make(chan struct{})
		close(p.turn)
		p.mu.Unlock()
		p.send(wire.KindAnswer, 0, &wire.Opened{Token: t.Identity(), Warnings: t.Warnings(), PINTriesLow: t.PINTriesLow(), Sessions: t.Sessions()})
	}()
	return nil
}

// askPIN asks hsmbridge for the PIN. The bytes lie in the locked page; hsm overwrites them after the login.
func (p *process) askPIN(_ context.Context, token wrapping.TokenIdentity) ([]byte, error) {
	return p.ask(wire.KindPIN, &wire.WantPIN{Token: token})
}

// askAtDevice asks hsmbridge whether the token may ask for the PIN at its device, so that hsmbridge knows of the login before it begins.
func (p *process) askAtDevice(_ context.Context, token wrapping.TokenIdentity, _ string) error {
	_, err := p.ask(wire.KindLogIn, &wire.WantPIN{Token: token, AtDevice: true})
	return err
}

func (p *process) ask(answer wire.Kind, m *wire.WantPIN) ([]byte, error) {
	p.mu.Lock()
	p.wanting = answer
	p.mu.Unlock()
	p.send(wire.KindWantPIN, 0, m)
	pin := <-p.pins
	if pin == nil {
		return nil, p.noPIN
	}
	return pin, nil
}

func (p *process) answerPIN(kind wire.Kind, pin []byte, none error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanting == 0 || kind != p.wanting && kind != wire.KindNoPIN {
		clear(pin)
		return fmt.Errorf("%w: an answer for a PIN that nobody asked for", wire.ErrMalformed)
	}
	p.wanting, p.noPIN = 0, none
	p.pins <- pin
	return nil
}

// send sends a frame. If it cannot, hsmbridge is gone, and so is the process.
func (p *process) send(kind wire.Kind, call uint64, m wire.Message) {
	err := p.conn.Send(kind, 0, call, m)
	if errors.Is(err, wire.ErrMalformed) { // an answer longer than may be
		err = p.conn.Send(wire.KindFailed, 0, call, wire.FailureOf(&hsm.Error{Op: "answer", ErrClass: hsm.ClassCaller, Cause: err.Error(), Fix: "the token holds more, or longer, objects than hsmbridge takes"}))
	}
	if err != nil {
		os.Exit(exitGone)
	}
}

// call gives what carries a call out and answers it.
func (p *process) call(h wire.Header, payload []byte) (func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, twice := p.running[h.Call]; twice || p.token == nil || len(p.running) >= maxCalls {
		return nil, fmt.Errorf("%w: a call that cannot be", wire.ErrMalformed)
	}
	waiting, cancel := context.WithCancel(context.Background())
	ctx := context.Background()
	if h.Op == wire.OpProbe { // the one that makes many calls to the module: it can stop between two
		ctx = waiting
	}
	p.running[h.Call] = cancel
	do, err := prepare(h.Op, payload, p.token)
	if err != nil {
		cancel()
		return nil, err
	}
	q := queue{cancelled: waiting.Done(), slots: p.slots, turn: p.turn, next: make(chan struct{})}
	if h.Op == wire.OpClose { // it waits for the others by itself, a while
		q.slots, q.turn = make(chan struct{}, 1), make(chan struct{})
		close(q.turn)
	} else {
		p.turn = q.next
	}
	return func() {
		m, err := q.carryOut(ctx, do)
		cancel()
		p.mu.Lock()
		delete(p.running, h.Call)
		p.mu.Unlock()
		if err != nil {
			p.send(wire.KindFailed, h.Call, wire.FailureOf(err))
			return
		}
		p.send(wire.KindAnswer, h.Call, m)
		if h.Op == wire.OpClose {
			os.Exit(exitGone)
		}
	}, nil
}

// queue is a call's place among those that wait for a session: they get one in the order in which they came, which is how hsmbridge reckons
// when the time of each begins.
type queue struct {
	cancelled  <-chan struct{}
	slots      chan struct{}
	turn, next chan struct{} // closed when the call before this one, and this one, waits no more
}

// carryOut does what a request asks for when a session is free for it, unless nobody waits for it any more.
func (q queue) carryOut(ctx context.Context, do func(context.Context) (wire.Message, error)) (wire.Message, error) {
	select {
	case <-q.turn:
		select {
		case q.slots <- struct{}{}:
			defer func() { <-q.slots }()
		case <-q.cancelled:
		}
		close(q.next)
	case <-q.cancelled:
		go func() { <-q.turn; close(q.next) }()
	}
	select {
	case <-q.cancelled:
		return nil, &hsm.Error{Op: "wait for a session", ErrClass: hsm.ClassSession, Cause: "nobody waits for the call any more, so it was not begun", Fix: "run this again", Err: context.Canceled}
	default:
		return do(ctx)
	}
}

// prepare reads a request and gives what carries it out.
func prepare(op wire.Op, payload []byte, t *hsm.Token) (do func(context.Context) (wire.Message, error), err error) {
	here := func(k wire.Key) wrapping.Key {
		k.Epoch = t.Epoch()
		return k.Key
	}
	var (
		find     wire.Find
		generate wire.Generate
		key      wire.Key
		specs    wire.Specs
		report   wire.Report
		wrap     wire.Wrap
		sign     wire.Sign
	)
	switch op {
	case wire.OpMechanisms:
		return func(ctx context.Context) (wire.Message, error) {
			list, err := t.Mechanisms(ctx)
			return &wire.Mechanisms{Mechanisms: list}, err
		}, empty(payload)
	case wire.OpProbe:
		return func(ctx context.Context) (wire.Message, error) {
			c, err := t.Probe(ctx, specs.Specs...)
			return &wire.Capabilities{Capabilities: c}, err
		}, wire.Decode(payload, &specs)
	case wire.OpKeys:
		return func(ctx context.Context) (wire.Message, error) {
			list, err := t.Keys(ctx)
			out := &wire.Keys{}
			for _, k := range list {
				out.Keys = append(out.Keys, wire.Key{Key: k})
			}
			return out, err
		}, empty(payload)
	case wire.OpFind:
		err := wire.Decode(payload, &find)
		u, perr := pkcs11uri.Parse(find.URI)
		if perr != nil {
			err = fmt.Errorf("%w: a bad URI", wire.ErrMalformed)
		}
		return func(ctx context.Context) (wire.Message, error) { return keyOf(t.Find(ctx, u)) }, err
	case wire.OpGenerate:
		return func(ctx context.Context) (wire.Message, error) {
			return keyOf(t.Generate(ctx, generate.Spec, generate.Label, generate.ID))
		}, wire.Decode(payload, &generate)
	case wire.OpGenerateSigning:
		return func(ctx context.Context) (wire.Message, error) {
			return keyOf(t.GenerateSigning(ctx, generate.Label, generate.ID))
		}, wire.Decode(payload, &generate)
	case wire.OpWrap:
		err := wire.Decode(payload, &wrap)
		pub, perr := publicKey(wrap)
		return func(ctx context.Context) (wire.Message, error) {
			return bytesOf(t.Wrap(ctx, here(wrap.Key), pub, wrap.Plan))
		}, errors.Join(err, perr)
	case wire.OpPublicKey:
		return func(ctx context.Context) (wire.Message, error) { return bytesOf(t.PublicKey(ctx, here(key))) }, wire.Decode(payload, &key)
	case wire.OpMAC:
		return func(ctx context.Context) (wire.Message, error) {
			return bytesOf(t.MAC(ctx, here(sign.Key), sign.Message))
		}, wire.Decode(payload, &sign)
	case wire.OpSign:
		return func(ctx context.Context) (wire.Message, error) {
			return bytesOf(t.SignVerified(ctx, here(sign.Key), sign.Public, sign.Message))
		}, wire.Decode(payload, &sign)
	case wire.OpCheckValue:
		return func(ctx context.Context) (wire.Message, error) {
			v, err := t.CheckValue(ctx, here(key))
			return &wire.Text{Text: v}, err
		}, wire.Decode(payload, &key)
	case wire.OpReport:
		return func(ctx context.Context) (wire.Message, error) {
			r, err := t.Report(ctx, report.Version, report.Private)
			if err != nil {
				return nil, err
			}
			text, err := r.Encode()
			return &wire.Document{JSON: text}, err
		}, wire.Decode(payload, &report)
	case wire.OpClose:
		return func(context.Context) (wire.Message, error) { return nil, t.Close() }, empty(payload)
	}
	return nil, fmt.Errorf("%w: %s", wire.ErrMalformed, op)
}

func empty(payload []byte) error {
	if len(payload) > 0 {
		return fmt.Errorf("%w: a request with a payload", wire.ErrMalformed)
	}
	return nil
}

func keyOf(k wrapping.Key, err error) (wire.Message, error) { return &wire.Key{Key: k}, err }

func bytesOf(b []byte, err error) (wire.Message, error) { return &wire.Bytes{Bytes: b}, err }

// publicKey is the RSA public key of a request: what hsmbridge checked when KMS gave it.
func publicKey(w wire.Wrap) (*rsa.PublicKey, error) {
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(w.Modulus), E: int(w.Exponent)} //nolint:gosec // checked here
	if w.Exponent < 3 || w.Exponent > 1<<31-1 || pub.N.Sign() == 0 || pub.Size() > 1024 {
		return nil, fmt.Errorf("%w: a wrapping public key", wire.ErrMalformed)
	}
	return pub, nil
}

// inbox reads the socket in large pieces. A PIN passes through it, so its memory is locked, and what was taken out is overwritten.
type inbox struct {
	f    io.Reader
	buf  []byte
	from int // buf[from:to] is yet to be taken
	to   int
}

// Read takes what is there, or waits for more.
func (b *inbox) Read(p []byte) (int, error) {
	if b.from == b.to {
		n, err := b.f.Read(b.buf)
		if n == 0 {
			return 0, err //nolint:wrapcheck // io.EOF is looked for
		}
		b.from, b.to = 0, n
	}
	n := copy(p, b.buf[b.from:b.to])
	clear(b.buf[b.from : b.from+n])
	b.from += n
	return n, nil
}
