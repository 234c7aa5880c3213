package daemon

import (
	"errors"
	"fmt"
	"log/syslog"
	"net"
	"os"
	"strings"
	"time"
)

// tag is the program's name in messages to syslog.
const tag = "hsmbridge-audit"

// priority is that of all messages: authpriv.notice.
const priority = syslog.LOG_AUTHPRIV | syslog.LOG_NOTICE

// toSyslog sends each line as one message, in the form of RFC 3164: to the local syslog by log/syslog, to a socket of another path as there, to
// another machine with the time of RFC 3339 and the host's name.
func toSyslog(place string, lines [][]byte) (err error) {
	if path, ok := strings.CutPrefix(place, "unix://"); ok {
		return toSocket(path, lines)
	}
	network, address := "", ""
	if place != "local" {
		var ok bool
		if network, address, ok = strings.Cut(place, "://"); !ok {
			return fmt.Errorf("syslog: %q is no place", place)
		}
	}
	w, err := syslog.Dial(network, address, priority, tag)
	if err != nil {
		return fmt.Errorf("syslog: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, l := range lines {
		if _, err := w.Write(l); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
	}
	return nil
}

// toSocket sends lines to a datagram socket such as /dev/log.
func toSocket(path string, lines [][]byte) (err error) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("syslog: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	const patience = 5 * time.Second
	for _, l := range lines {
		if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
		if _, err := fmt.Fprintf(c, "<%d>%s %s[%d]: %s\n", priority, time.Now().Format(time.Stamp), tag, os.Getpid(), l); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
	}
	return nil
}
