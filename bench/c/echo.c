// echo is what the system calls alone cost: a UDP server in C that reads and writes
// 64 datagrams at a time and does nothing else.
//
//   echo echo         sends every datagram back to where it came from
//   echo fanout       remembers senders of empty datagrams as members, and sends every
//                     other datagram of the first member to all members but that one;
//                     other members' datagrams are read and dropped
//
// It says its address on standard output and ends when standard input does.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, SIZE = 2048, MEMBERS = 1024 };

static struct mmsghdr heads[BATCH];
static struct iovec iovecs[BATCH];
static struct sockaddr_in names[BATCH];
static char bytes[BATCH][SIZE];

static struct sockaddr_in members[MEMBERS];
static int member_count;

static void die(const char *what) {
	perror(what);
	exit(1);
}

static void *watch_input(void *unused) {
	char c;
	while (read(0, &c, 1) > 0) {}
	_exit(0);
	return unused;
}

static int open_socket(void) {
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0) die("socket");
	int size = 4 << 20;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof a;
	if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0) die("bind");
	if (getsockname(fd, (struct sockaddr *)&a, &len) < 0) die("getsockname");
	printf("{\"addr\":\"127.0.0.1:%d\"}\n", ntohs(a.sin_port));
	fflush(stdout);
	return fd;
}

// receive waits for one datagram and takes up to a batch.
static int receive(int fd) {
	for (int i = 0; i < BATCH; i++) {
		iovecs[i].iov_base = bytes[i];
		iovecs[i].iov_len = SIZE;
		heads[i].msg_hdr.msg_name = &names[i];
		heads[i].msg_hdr.msg_namelen = sizeof names[i];
		heads[i].msg_hdr.msg_iov = &iovecs[i];
		heads[i].msg_hdr.msg_iovlen = 1;
	}
	int n = recvmmsg(fd, heads, BATCH, MSG_WAITFORONE, NULL);
	if (n < 0) die("recvmmsg");
	return n;
}

static void transmit(int fd, struct mmsghdr *from, int n) {
	while (n > 0) {
		int sent = sendmmsg(fd, from, n, 0);
		if (sent < 0) die("sendmmsg");
		from += sent;
		n -= sent;
	}
}

static void echo(int fd) {
	for (;;) {
		int n = receive(fd);
		for (int i = 0; i < n; i++) iovecs[i].iov_len = heads[i].msg_len;
		transmit(fd, heads, n);
	}
}

static int is_first(const struct sockaddr_in *a) {
	return member_count > 0 && a->sin_addr.s_addr == members[0].sin_addr.s_addr && a->sin_port == members[0].sin_port;
}

// tell sends one datagram to all members but the first, a batch at a time.
static void tell(int fd, char *data, size_t len) {
	static struct mmsghdr out[BATCH];
	struct iovec v = {.iov_base = data, .iov_len = len};
	int n = 0;
	for (int m = 1; m < member_count; m++) {
		out[n].msg_hdr.msg_name = &members[m];
		out[n].msg_hdr.msg_namelen = sizeof members[m];
		out[n].msg_hdr.msg_iov = &v;
		out[n].msg_hdr.msg_iovlen = 1;
		if (++n == BATCH || m == member_count - 1) {
			transmit(fd, out, n);
			n = 0;
		}
	}
}

static void fanout(int fd) {
	for (;;) {
		int n = receive(fd);
		for (int i = 0; i < n; i++) {
			if (heads[i].msg_len == 0) {
				if (member_count < MEMBERS) members[member_count++] = names[i];
			} else if (is_first(&names[i])) {
				tell(fd, bytes[i], heads[i].msg_len);
			}
		}
	}
}

int main(int argc, char **argv) {
	if (argc != 2) {
		fprintf(stderr, "usage: echo echo|fanout\n");
		return 2;
	}
	pthread_t watcher;
	if (pthread_create(&watcher, NULL, watch_input, NULL) != 0) die("pthread_create");
	int fd = open_socket();
	if (strcmp(argv[1], "fanout") == 0) {
		fanout(fd);
	}
	echo(fd);
}
