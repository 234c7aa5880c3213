// Which sessions are open, which session objects live in them, and the counters.
#include "shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define AS_NAME(name) #name,
const char *const function_names[FUNCTION_COUNT] = { FUNCTIONS(AS_NAME) };
static const char *const counter_names[COUNTER_COUNT] = { "open_sessions", "session_objects", "token_objects", "injected", "scripts" };

CK_FUNCTION_LIST *real;

enum { MOST_SESSIONS = 4096, MOST_OBJECTS = 16384 };
struct session { CK_SESSION_HANDLE handle; CK_SLOT_ID slot; };
struct object { CK_OBJECT_HANDLE handle; CK_SESSION_HANDLE session; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct session sessions[MOST_SESSIONS];
static size_t session_count;
static struct object objects[MOST_OBJECTS]; // session objects
static size_t object_count;
static CK_OBJECT_HANDLE generation;         // of object handles

// The counters' file is a line for each: a name of 24 columns and a number of 20 digits. It is mapped, so that what
// was counted is there after a crash, too.
enum { NAME_WIDTH = 24, LINE = NAME_WIDTH + 21 };
static char *page;
static unsigned long calls[FUNCTION_COUNT];
static long counters[COUNTER_COUNT];

static void show(size_t line, long value) {
	char digits[24];
	if (page == NULL)
		return;
	snprintf(digits, sizeof digits, "%020ld", value);
	memcpy(page + line * LINE + NAME_WIDTH, digits, 20);
}

static void set(enum counter c, long value) {
	counters[c] = value;
	show(FUNCTION_COUNT + (size_t)c, value);
}

static void show_live(void) {
	set(OPEN_SESSIONS, (long)session_count);
	set(SESSION_OBJECTS, (long)object_count);
}

// open_counters keeps what a file of the right size holds: a process goes on counting where the one before it ended.
static void open_counters(const char *path) {
	const size_t lines = FUNCTION_COUNT + COUNTER_COUNT, size = lines * LINE;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	off_t had = lseek(fd, 0, SEEK_END);
	if (ftruncate(fd, (off_t)size) == 0) {
		page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (page == MAP_FAILED)
			page = NULL;
	}
	close(fd);
	if (page == NULL)
		return;
	for (size_t i = 0; i < lines; i++) {
		char *line = page + i * LINE;
		long value = 0;
		if (had == (off_t)size)
			sscanf(line + NAME_WIDTH, "%20ld", &value);
		char name[NAME_WIDTH + 1];
		snprintf(name, sizeof name, "%-24s", i < FUNCTION_COUNT ? function_names[i] : counter_names[i - FUNCTION_COUNT]);
		memcpy(line, name, NAME_WIDTH);
		line[LINE - 1] = '\n';
		if (i < FUNCTION_COUNT)
			calls[i] = (unsigned long)value;
		else
			counters[i - FUNCTION_COUNT] = value;
		show(i, value);
	}
}

void state_begin(const char *path) {
	pthread_mutex_lock(&lock);
	session_count = object_count = 0;
	memset(calls, 0, sizeof calls);
	memset(counters, 0, sizeof counters);
	if (path != NULL)
		open_counters(path);
	show_live();
	pthread_mutex_unlock(&lock);
}

void state_end(void) {
	pthread_mutex_lock(&lock);
	session_count = object_count = 0;
	show_live();
	if (page != NULL)
		munmap(page, (FUNCTION_COUNT + COUNTER_COUNT) * LINE);
	page = NULL;
	pthread_mutex_unlock(&lock);
}

void count_call(enum function f) {
	pthread_mutex_lock(&lock);
	show(f, (long)++calls[f]);
	pthread_mutex_unlock(&lock);
}

static void count(enum counter c) {
	pthread_mutex_lock(&lock);
	set(c, counters[c] + 1);
	pthread_mutex_unlock(&lock);
}
void count_injected(void) { count(INJECTED); }
void count_script(void) { count(SCRIPTS); }

CK_RV session_opened(CK_SLOT_ID slot, CK_SESSION_HANDLE s) {
	CK_RV rv = CKR_SESSION_COUNT;
	pthread_mutex_lock(&lock);
	if (session_count < MOST_SESSIONS) {
		sessions[session_count++] = (struct session){ s, slot };
		rv = CKR_OK;
	}
	show_live();
	pthread_mutex_unlock(&lock);
	return rv;
}

// drop_session forgets a session and its objects. The lock is held.
static void drop_session(CK_SESSION_HANDLE s) {
	for (size_t i = 0; i < session_count; i++)
		if (sessions[i].handle == s)
			sessions[i--] = sessions[--session_count];
	for (size_t i = 0; i < object_count; i++)
		if (objects[i].session == s)
			objects[i--] = objects[--object_count];
	show_live();
}

void session_closed(CK_SESSION_HANDLE s) {
	pthread_mutex_lock(&lock);
	drop_session(s);
	pthread_mutex_unlock(&lock);
}

void sessions_closed(void) {
	pthread_mutex_lock(&lock);
	session_count = object_count = 0;
	show_live();
	pthread_mutex_unlock(&lock);
}

long sessions_open(void) {
	pthread_mutex_lock(&lock);
	long n = (long)session_count;
	pthread_mutex_unlock(&lock);
	return n;
}

// session_check: a session that was lost is closed in the module behind, whose next session may have the same handle.
CK_RV session_check(CK_SESSION_HANDLE s) {
	CK_RV rv = CKR_SESSION_HANDLE_INVALID;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < session_count; i++)
		if (sessions[i].handle == s)
			rv = CKR_OK;
	pthread_mutex_unlock(&lock);
	return rv;
}

void lose_session(CK_SESSION_HANDLE s) {
	if (session_check(s) == CKR_OK)
		real->C_CloseSession(s);
	session_closed(s);
}

void lose_sessions(void) {
	for (;;) {
		pthread_mutex_lock(&lock);
		bool any = session_count > 0;
		CK_SLOT_ID slot = any ? sessions[0].slot : 0;
		pthread_mutex_unlock(&lock);
		if (!any)
			return;
		real->C_CloseAllSessions(slot);
		pthread_mutex_lock(&lock);
		for (size_t i = 0; i < session_count; i++)
			if (sessions[i].slot == slot)
				drop_session(sessions[i--].handle);
		pthread_mutex_unlock(&lock);
	}
}

void lose_login(CK_SESSION_HANDLE s) {
	pthread_mutex_lock(&lock);
	if (s == 0 && session_count > 0)
		s = sessions[0].handle;
	pthread_mutex_unlock(&lock);
	real->C_Logout(s);
}

// Object handles carry the generation in which they were given out, above the module's own bits.
enum { GENERATION_BIT = 40 };

void stale_objects(void) { __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST); }

static CK_OBJECT_HANDLE current(void) { return (__atomic_load_n(&generation, __ATOMIC_SEQ_CST) & 0x3fffff) << GENERATION_BIT; }

CK_OBJECT_HANDLE object_out(CK_OBJECT_HANDLE h) { return h | current(); }

bool object_in(CK_OBJECT_HANDLE *h) {
	const CK_OBJECT_HANDLE own = ((CK_OBJECT_HANDLE)1 << GENERATION_BIT) - 1;
	bool fresh = (*h & ~own) == current();
	*h &= own;
	return fresh;
}

// object_made counts an object. CKA_TOKEN is false where a template does not say it (PKCS#11 v2.40, 4.4).
void object_made(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE h, const CK_ATTRIBUTE *template, CK_ULONG n) {
	bool stored = false;
	for (CK_ULONG i = 0; template != NULL && i < n; i++)
		if (template[i].type == CKA_TOKEN && template[i].ulValueLen == sizeof(CK_BBOOL) && template[i].pValue != NULL)
			stored = *(CK_BBOOL *)template[i].pValue != CK_FALSE;
	pthread_mutex_lock(&lock);
	if (stored)
		set(TOKEN_OBJECTS, counters[TOKEN_OBJECTS] + 1);
	else if (object_count < MOST_OBJECTS)
		objects[object_count++] = (struct object){ h, s };
	show_live();
	pthread_mutex_unlock(&lock);
}

void object_destroyed(CK_OBJECT_HANDLE h) {
	bool found = false;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < object_count && !found; i++)
		if (objects[i].handle == h) {
			objects[i] = objects[--object_count];
			found = true;
		}
	if (!found)
		set(TOKEN_OBJECTS, counters[TOKEN_OBJECTS] - 1);
	show_live();
	pthread_mutex_unlock(&lock);
}
